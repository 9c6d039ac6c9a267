"""Labels of rows, by their neighbours or by one vector for each label.

==============  ======================================================================
file            what it is for
==============  ======================================================================
knn             ``knn_classify``, ``knn_classify_many``
votes           what neighbours' votes weigh, ``softmax``; the label that wins, or why none does
prototypes      ``zero_shot``, ``centroid_classify``
neighbourhoods  ``label_issues``, ``outliers``, ``representatives``
==============  ======================================================================
"""
