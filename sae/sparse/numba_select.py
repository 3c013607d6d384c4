"""Compiled selection from a block of dense pre-activations. Imported only where numba is in use.

The idea that makes selection cheap: split a row's columns into classes; the k-th largest of the
*class maxima* is a lower bound of the row's k-th largest element (k classes hold an element at
least that large). So one vectorised pass for the maxima, a selection among few maxima, then a look
into the few classes that reach the bound. A class is the columns of equal remainder modulo the
number of classes: its maxima then need no reduction within a vector register.
"""

import inspect
from collections.abc import Callable

import numba
import numpy as np

FLAGS = {"contract", "reassoc", "nsz", "arcp"}


def _compiler(flags: set[str]) -> Callable[[Callable], Callable]:
    """A decorator that compiles a function.

    `unwrap` takes off what a run-time type checker put on it.
    """
    compile_ = numba.njit(nogil=True, cache=True, error_model="numpy", fastmath=flags)
    return lambda function: compile_(inspect.unwrap(function))


plain = _compiler(set())
jit = _compiler(FLAGS)
jit_max = _compiler(FLAGS | {"nnan"})


@plain
def kth_largest(a, n, k):
    """The `k`-th largest (from 1) of `a[:n]`, which is reordered.

    Terminates for any content, NaN included.
    """
    lo, hi, want = 0, n - 1, k - 1
    while lo < hi:
        mid = (lo + hi) >> 1
        if a[mid] > a[lo]:
            a[mid], a[lo] = a[lo], a[mid]
        if a[hi] > a[lo]:
            a[hi], a[lo] = a[lo], a[hi]
        if a[hi] > a[mid]:
            a[hi], a[mid] = a[mid], a[hi]
        pivot = a[mid]
        i, j = lo, hi
        while i <= j:
            while i < hi and a[i] > pivot:
                i += 1
            while j > lo and pivot > a[j]:
                j -= 1
            if i <= j:
                a[i], a[j] = a[j], a[i]
                i += 1
                j -= 1
        if want <= j:
            hi = j
        elif want >= i:
            lo = i
        else:
            break
    return a[want]


@jit_max
def class_maxima(row, bias, out):
    """`out[q] = max of (row + bias)[c]` over the columns `c` of class `q`.

    `c % len(out) == q`, without the tail.
    """
    classes = out.shape[0]
    for t in range(classes):
        out[t] = row[t] + bias[t]
    for start in range(classes, row.shape[0] - classes + 1, classes):
        x, b = row[start : start + classes], bias[start : start + classes]
        for t in range(classes):
            out[t] = max(out[t], x[t] + b[t])


@plain
def _collect(row, bias, maxima, bound, floor, column, cand_v, cand_i, m):
    """Append to the candidates what is above `floor` and not below `bound`.

    Returns the new count.
    """
    width, classes = row.shape[0], maxima.shape[0]
    full = width // classes * classes if classes else 0
    for q in range(classes):
        if maxima[q] >= bound and maxima[q] > floor:
            for c in range(q, full, classes):
                v = row[c] + bias[c]
                if v >= bound and v > floor:
                    cand_v[m] = v
                    cand_i[m] = column + c
                    m += 1
    for c in range(full, width):
        v = row[c] + bias[c]
        if v >= bound and v > floor:
            cand_v[m] = v
            cand_i[m] = column + c
            m += 1
    return m


@plain
def _sort_by_index(cand_v, cand_i, m):
    """Shell sort of the candidates."""
    for gap in (301, 132, 57, 23, 10, 4, 1):
        for j in range(gap, m):
            v, i = cand_v[j], cand_i[j]
            at = j
            while at >= gap and cand_i[at - gap] > i:
                cand_v[at] = cand_v[at - gap]
                cand_i[at] = cand_i[at - gap]
                at -= gap
            cand_v[at] = v
            cand_i[at] = i


@plain
def _store(cand_v, cand_i, m, k, scratch, values, indices):
    """Keep the `k` largest of `m` candidates in their order; of equal ones the first.

    Returns how many.
    """
    if m <= k:
        for j in range(m):
            values[j] = cand_v[j]
            indices[j] = cand_i[j]
        return m
    for j in range(m):
        scratch[j] = cand_v[j]
    kth = kth_largest(scratch, m, k)
    ties = k
    for j in range(m):
        if cand_v[j] > kth:
            ties -= 1
    kept = 0
    for j in range(m):
        take = cand_v[j] > kth
        if not take and cand_v[j] == kth and ties > 0:
            take = True
            ties -= 1
        if take and kept < k:
            values[kept] = cand_v[j]
            indices[kept] = cand_i[j]
            kept += 1
    return kept


@plain
def topk_rows(pre, bias, column, classes, values, indices, counts, lo, hi):
    """Merge the block `pre + bias` into the running top k of rows `lo:hi`.

    The first column of the block is latent `column`; `classes` is 0 (no pruning) or at least k.
    """
    width, k = pre.shape[1], values.shape[1]
    maxima = np.empty(classes, pre.dtype)
    scratch = np.empty(width + k, pre.dtype)
    cand_v = np.empty(width + k, pre.dtype)
    cand_i = np.empty(width + k, np.int32)
    for r in range(lo, hi):
        m = counts[r]
        bound = floor = pre.dtype.type(0)
        for j in range(m):
            cand_v[j] = values[r, j]
            cand_i[j] = indices[r, j]
        if m == k:
            floor = values[r].min()
        if classes:
            class_maxima(pre[r], bias, maxima)
            scratch[:classes] = maxima
            bound = kth_largest(scratch, classes, k)
        m = _collect(pre[r], bias, maxima, bound, floor, column, cand_v, cand_i, m)
        if classes:
            _sort_by_index(cand_v, cand_i, m)
        counts[r] = _store(cand_v, cand_i, m, k, scratch, values[r], indices[r])


@plain
def maxima_rows(pre, bias, out, lo, hi):
    """Class maxima of rows `lo:hi`."""
    for r in range(lo, hi):
        class_maxima(pre[r], bias, out[r])


@jit
def _above(row, bias, threshold, lo, hi):
    """How many entries of `row[lo:hi] + bias` exceed their threshold."""
    total = 0
    for c in range(lo, hi):
        total += row[c] + bias[c] > threshold[c]
    return total


@plain
def take_above(pre, bias, threshold, column, counts, lo, hi):
    """Values and latents of the entries of rows `lo:hi` that exceed their threshold, in order; `counts[r]` is a row's number.

    A row is counted and taken while it lies in the cache.
    """
    width = pre.shape[1]
    values, indices, m = np.empty(64 * (hi - lo), pre.dtype), np.empty(64 * (hi - lo), np.int32), 0
    for r in range(lo, hi):
        row = pre[r]
        counts[r] = _above(row, bias, threshold, 0, width)
        end = m + counts[r]
        if end > len(values):
            more_v, more_i = np.empty(2 * end, pre.dtype), np.empty(2 * end, np.int32)
            more_v[:m], more_i[:m] = values[:m], indices[:m]
            values, indices = more_v, more_i
        start = 0
        while m < end:
            stop = min(start + 64, width)
            if _above(row, bias, threshold, start, stop):
                for c in range(start, stop):
                    v = row[c] + bias[c]
                    if v > threshold[c]:
                        values[m] = v
                        indices[m] = column + c
                        m += 1
            start = stop
    return values[:m], indices[:m]
