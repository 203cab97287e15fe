"""The lab: gradient descent, depth, time and cures as experiments that run in seconds, usable from Python without the page.

Landscapes and descents on them (`landscapes`, `descent`), the explorer in the mountains (`explorer`), deep networks beside
their theory (`depth`, `phases`), hundreds of small networks trained at once (`ensembles`), every strategy on the
same sick network (`strategies`) and a game of diagnosis (`doctor`). Importing this package costs nothing.
"""
