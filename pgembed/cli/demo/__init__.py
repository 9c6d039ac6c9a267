"""``pgembed demo``: the whole of pgembed on real texts."""

from pgembed.cli.demo.command import register

__all__ = ["register"]
