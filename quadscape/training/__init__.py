"""Training as a resumable stage: SGD whose every batch, and almost every iterate, is kept.

θ and the momentum are one flat float64 vector each, so that steps far below float32's rounding survive; only the
forward and backward passes run in the run's dtype. Index t of an array is the number of steps taken: `theta[t]` is the
state before step t, `loss[t]` the loss of batch t there.

A network with BatchNorm trains on batch statistics; the evaluations along the run use its running averages.
(A checkpoint's statistics are recomputed over the whole training set, see `quadscape.network.checkpoint`.)
"""
