"""Clusters that are computed in Python, and labels of clusters that are written back.

=======  =======================================================================
file     what it is for
=======  =======================================================================
centers  ``kmeans``: scikit-learn's MiniBatchKMeans on vectors that are streamed
labels   ``write_labels``: which cluster each row is in, written in batches
=======  =======================================================================
"""

from pgembed.clustering.centers import KMeans, kmeans
from pgembed.clustering.labels import Written, write_labels

__all__ = ["KMeans", "Written", "kmeans", "write_labels"]
