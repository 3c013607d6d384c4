"""The sparse compute path: encode, decode, differentiate and update only what is active."""

from .acts import SparseActs
from .adam import FusedAdam
from .backend import backend
from .batch_selector import BatchTopK
from .rowgrad import RowGrad, attach_row_grad, detach_row_grad, row_grad_of
from .select import batch_topk, encode_batch_topk, encode_threshold, encode_topk, select, topk
from .selectors import Threshold, TopK
from .training import decode_on, decode_prefixes, decode_sparse, encode_on

__all__ = [
    "BatchTopK",
    "FusedAdam",
    "RowGrad",
    "SparseActs",
    "Threshold",
    "TopK",
    "attach_row_grad",
    "backend",
    "batch_topk",
    "decode_on",
    "decode_prefixes",
    "decode_sparse",
    "detach_row_grad",
    "encode_batch_topk",
    "encode_on",
    "encode_threshold",
    "encode_topk",
    "row_grad_of",
    "select",
    "topk",
]
