"""The compiled part of `crf.py`: recursions over real steps, in numba, for the CPU.

Each function compiles its kernels at the first call and keeps them for the process; nothing is cached on disk (numba's cache is
a pickle). Compiling takes seconds, importing this module nothing. The equations are those of `crf.py`; what is scaled, and when
that is exact, is said there under "Numerics".
"""

from __future__ import annotations

import functools
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

LOST = 1e-30  # scaled probabilities below this become 0
HARM = 1e18  # ... unless a backward variable above this says that they may be felt: then the log domain
LANES = 16  # rows of the compiled recursions are padded to a multiple of this


def padded_width(num_tags: int) -> int:
    """The length of a row that holds `num_tags` numbers in the compiled recursions."""
    return -(-num_tags // LANES) * LANES


def aligned(*shape: int, dtype: Any = np.float32, fill: float | None = None) -> NDArray[Any]:
    """An array on a 64-byte boundary, which numpy does not promise: rows then lie within cache lines."""
    kind = torch.float32 if dtype == np.float32 else torch.float64
    return (torch.empty(shape, dtype=kind) if fill is None else torch.full(shape, fill, dtype=kind)).numpy()


@functools.cache
def log_kernels() -> SimpleNamespace:
    """Compile the log-domain recursions (float64), exact for any finite scores, and the work on gold tags and masks.

    One step costs num_tags exponentials and a matrix-vector product: `log(exp(a - max a) @ exp(transitions - max))`. Where
    that product is below 1e-250 terms may be missing from it, and the entry is summed again term by term.
    """
    import numba

    jit = numba.njit(error_model="numpy", nogil=True)

    def product(logs: Any, matrix: Any, kernel: Any, kernel_max: float, out: Any) -> None:
        """out[j] = log sum_i exp(logs[i] + matrix[i, j]); kernel = exp(matrix - kernel_max)."""
        num_tags = logs.shape[0]
        top = -np.inf
        for i in range(num_tags):
            if not logs[i] <= top:
                top = logs[i]
        if top == -np.inf:
            for j in range(num_tags):
                out[j] = -np.inf
            return
        for j in range(num_tags):
            out[j] = 0.0
        for i in range(num_tags):
            weight = math.exp(logs[i] - top)
            if weight != 0.0:
                for j in range(num_tags):
                    out[j] += weight * kernel[i, j]
        for j in range(num_tags):
            if not out[j] < 1e-250:
                out[j] = math.log(out[j]) + top + kernel_max
            else:
                best = -np.inf
                for i in range(num_tags):
                    best = max(best, logs[i] + matrix[i, j])
                total = 0.0
                if best > -np.inf:
                    for i in range(num_tags):
                        total += math.exp(logs[i] + matrix[i, j] - best)
                    out[j] = best + math.log(total)
                else:
                    out[j] = -np.inf

    product = jit(product)

    def log_sum(values: Any) -> float:
        top = -np.inf
        for i in range(values.shape[0]):
            if not values[i] <= top:
                top = values[i]
        if top == -np.inf:
            return top
        total = 0.0
        for i in range(values.shape[0]):
            total += math.exp(values[i] - top)
        return top + math.log(total)

    log_sum = jit(log_sum)

    def forward(
        emissions: Any, start: Any, matrix: Any, end: Any, kernel: Any, kernel_max: float, divide: float, alphas: Any
    ) -> float:
        """Fill alphas (steps, num_tags) with the log forward variables, return the log partition."""
        steps, num_tags = alphas.shape
        weights = np.empty(num_tags)
        for j in range(num_tags):
            alphas[0, j] = start[j] + emissions[0, j] / divide
        for t in range(1, steps):
            product(alphas[t - 1], matrix, kernel, kernel_max, alphas[t])
            for j in range(num_tags):
                alphas[t, j] += emissions[t, j] / divide
        for j in range(num_tags):
            weights[j] = alphas[steps - 1, j] + end[j]
        return log_sum(weights)

    forward = jit(forward)

    def betas(
        emissions: Any, end: Any, matrix_t: Any, kernel_t: Any, kernel_max: float, divide: float, out: Any
    ) -> None:
        """Fill out (steps, num_tags) with the log backward variables."""
        steps, num_tags = out.shape
        scratch = np.empty(num_tags)
        for j in range(num_tags):
            out[steps - 1, j] = end[j]
        for t in range(steps - 1, 0, -1):
            for j in range(num_tags):
                scratch[j] = out[t, j] + emissions[t, j] / divide
            product(scratch, matrix_t, kernel_t, kernel_max, out[t - 1])

    betas = jit(betas)

    def counts(
        emissions: Any,
        matrix: Any,
        kernel: Any,
        kernel_max: float,
        alphas: Any,
        beta: Any,
        total: float,
        nodes: Any,
        pairs: Any,
    ) -> None:
        """Write node marginals (steps, num_tags) and the sum of the pair marginals (num_tags, num_tags); total: log partition."""
        steps, num_tags = alphas.shape
        right, outer = np.empty(num_tags), np.zeros((num_tags, num_tags))
        pairs[:] = 0.0
        for t in range(steps):
            for j in range(num_tags):
                log_node = alphas[t, j] + beta[t, j]
                nodes[t, j] = math.exp(log_node - total) if log_node != -np.inf else 0.0
            if t == 0 or total == -np.inf:
                continue
            left_max, right_max = -np.inf, -np.inf
            for j in range(num_tags):
                right[j] = beta[t, j] + emissions[t, j]
                left_max = max(left_max, alphas[t - 1, j])
                right_max = max(right_max, right[j])
            scale = left_max + right_max + kernel_max - total
            if scale < 600.0:  # what underflows in a factor is then far below what could be seen in the product
                scale = math.exp(scale)
                for j in range(num_tags):
                    right[j] = math.exp(right[j] - right_max) * scale
                for i in range(num_tags):
                    left = math.exp(alphas[t - 1, i] - left_max)
                    for j in range(num_tags):
                        outer[i, j] += left * right[j]
            else:
                for i in range(num_tags):
                    for j in range(num_tags):
                        if matrix[i, j] > -np.inf:
                            pairs[i, j] += math.exp(alphas[t - 1, i] + matrix[i, j] + right[j] - total)
        for i in range(num_tags):
            for j in range(num_tags):
                pairs[i, j] += outer[i, j] * kernel[i, j]

    counts = jit(counts)

    def gold(
        emissions: Any, tags: Any, lengths: Any, start: Any, matrix: Any, end: Any, scores: Any
    ) -> tuple[int, int]:
        """Scores of the given sequences; returns the row and position of the first illegal one, or (-1, -1)."""
        num_tags = emissions.shape[2]
        for b in range(emissions.shape[0]):
            steps = lengths[b]
            total = 0.0
            for t in range(steps):
                tag = tags[b, t]
                if tag < 0 or tag >= num_tags:
                    return b, t
                step = start[tag] if t == 0 else matrix[tags[b, t - 1], tag]
                if t == steps - 1:
                    step += end[tag]
                if step == -np.inf:
                    return b, t
                total += step + emissions[b, t, tag]
            scores[b] = total
        return -1, -1

    gold = jit(gold)

    def add_gold(tags: Any, lengths: Any, factors: Any, pairs: Any, ends: Any) -> None:
        """Add factors[b] to the counts of the given sequences' transitions, starts and ends."""
        for b in range(tags.shape[0]):
            ends[0, tags[b, 0]] += factors[b]
            for t in range(1, lengths[b]):
                pairs[tags[b, t - 1], tags[b, t]] += factors[b]
            ends[1, tags[b, lengths[b] - 1]] += factors[b]

    add_gold = jit(add_gold)

    def prefix_lengths(mask: Any, lengths: Any) -> int:
        """Number of leading True of each row; returns the row whose mask is no prefix or is empty, or -1."""
        for b in range(mask.shape[0]):
            length = 0
            while length < mask.shape[1] and mask[b, length]:
                length += 1
            lengths[b] = length
            for t in range(length, mask.shape[1]):
                if mask[b, t]:
                    return b
            if length == 0:
                return b
        return -1

    prefix_lengths = jit(prefix_lengths)
    return SimpleNamespace(
        forward=forward, betas=betas, counts=counts, gold=gold, add_gold=add_gold, prefix_lengths=prefix_lengths
    )


@functools.cache
def viterbi_kernel(width: int, dtype: str) -> Any:
    """Compile Viterbi for rows padded to `width` (a constant lets the compiler unroll)."""
    import numba

    operations = _vector_operations(width, dtype)
    maxplus, load = operations.maxplus, operations.load

    def viterbi(
        emissions: Any,
        lengths: Any,
        start: Any,
        matrix: Any,
        matrix_t: Any,
        end: Any,
        work: Any,
        scores: Any,
        tags: Any,
    ) -> int:
        """Best path of each sentence into tags; returns the row that has no legal path, or -1.

        scores (longest, width) are kept relative to the best of the step before, so that long sentences lose no digits. Only scores
        are kept: which tag a best score came from is found again, for the one path that matters, by the same sums.
        """
        num_tags = emissions.shape[2]
        rows = (num_tags + 3) // 4 * 4
        row, previous, out = work[0], work[1], work[2]
        for b in range(emissions.shape[0]):
            steps = lengths[b]
            top = scores[0, 0]
            for t in range(steps):
                load(emissions[b, t], num_tags, row)
                score = scores[t]
                if t == 0:
                    for j in range(width):
                        score[j] = start[j] + row[j]
                else:
                    if not top > -np.inf:
                        return b
                    for j in range(width):
                        previous[j] = scores[t - 1, j] - top
                        scores[t - 1, j] = previous[j]
                    maxplus(previous, matrix, rows, out)
                    for j in range(width):
                        score[j] = out[j] + row[j]
                top = score[0]
                for j in range(1, width):
                    top = score[j] if score[j] > top else top
            tag = -1
            best = scores[0, 0]
            for j in range(num_tags):
                value = scores[steps - 1, j] + end[j]
                if value > -np.inf and (tag < 0 or value > best):
                    best = value
                    tag = j
            if tag < 0:
                return b
            tags[b, steps - 1] = tag
            for t in range(steps - 1, 0, -1):
                score = scores[t - 1]
                column = matrix_t[tag]
                tag = 0
                best = score[0] + column[0]
                for i in range(1, num_tags):
                    value = score[i] + column[i]
                    if value > best:
                        best = value
                        tag = i
                tags[b, t - 1] = tag
        return -1

    return numba.njit(error_model="numpy", nogil=True)(viterbi)


@functools.cache
def n_best_kernel() -> Any:
    """Compile n-best."""
    import numba

    def n_best(
        emissions: Any, start: Any, matrix: Any, end: Any, scores: Any, pointers: Any, tags: Any, totals: Any
    ) -> int:
        """The best paths of one sentence, best first; returns how many there are.

        Per step and tag the `count` best paths that end there; pointers hold previous tag * count + its rank.
        """
        steps, num_tags = emissions.shape
        count = totals.shape[0]
        following = np.empty_like(scores)
        scores[:] = -np.inf
        for j in range(num_tags):
            scores[j, 0] = start[j] + emissions[0, j]
        for t in range(1, steps):
            following[:] = -np.inf
            for j in range(num_tags):
                for i in range(num_tags):
                    for rank in range(count):
                        value = scores[i, rank] + matrix[i, j]
                        if not value > following[j, count - 1]:
                            break
                        slot = count - 1
                        while slot > 0 and value > following[j, slot - 1]:
                            following[j, slot] = following[j, slot - 1]
                            pointers[t, j, slot] = pointers[t, j, slot - 1]
                            slot -= 1
                        following[j, slot] = value
                        pointers[t, j, slot] = i * count + rank
            for j in range(num_tags):
                for rank in range(count):
                    scores[j, rank] = following[j, rank] + emissions[t, j]
        totals[:] = -np.inf
        last = np.zeros(count, np.int64)
        for j in range(num_tags):
            for rank in range(count):
                value = scores[j, rank] + end[j]
                if not value > totals[count - 1]:
                    break
                slot = count - 1
                while slot > 0 and value > totals[slot - 1]:
                    totals[slot] = totals[slot - 1]
                    last[slot] = last[slot - 1]
                    slot -= 1
                totals[slot] = value
                last[slot] = j * count + rank
        found = 0
        while found < count and totals[found] > -np.inf:
            place = last[found]
            for t in range(steps - 1, -1, -1):
                tag = place // count
                tags[found, t] = tag
                if t > 0:
                    place = pointers[t, tag, place % count]
            found += 1
        return found

    return numba.njit(error_model="numpy", nogil=True)(n_best)


@functools.cache
def _vector_operations(width: int, dtype: str) -> SimpleNamespace:
    """Build the operations on rows of `width` numbers that numba's own loops do two to five times slower.

    They are written in the compiler's own vectors, which keep a whole row of sums in registers: loops over arrays would store
    and load it at every term, and would treat the ragged end of a row number by number.

    matvec(vector, matrix, rows, out): out[j] = sum_i vector[i] * matrix[i, j]
    maxplus(vector, matrix, rows, out): out[j] = max_i vector[i] + matrix[i, j], which is returned as its own maximum
    load(row, count, out): out = row, padded with -inf; returns the maximum
    store(values, count, row): row = the first count values
    All arrays are contiguous, `matrix` is (width, width); `rows` is a multiple of 4, and what stands between num_tags and rows is
    neutral (0 for matvec, -inf for maxplus).
    """
    from llvmlite import ir  # type: ignore[import-untyped]
    from numba import types
    from numba.extending import intrinsic

    scalar, scalar_type = (ir.FloatType(), types.float32) if dtype == "float32" else (ir.DoubleType(), types.float64)
    lanes = LANES if dtype == "float32" else LANES // 2
    blocks = width // lanes
    vector_type = ir.VectorType(scalar, lanes)
    mask_type = ir.VectorType(ir.IntType(1), lanes)
    int32, int64 = ir.IntType(32), ir.IntType(64)
    lowest = ir.Constant(vector_type, [float("-inf")] * lanes)
    zeros = ir.Constant(vector_type, [0.0] * lanes)
    align = ir.Constant(int32, 4)
    suffix = f"v{lanes}f{32 if dtype == 'float32' else 64}"

    def data(context: Any, builder: Any, signature: Any, args: Any, place: int, vectors: bool = True) -> Any:
        pointer = context.make_array(signature.args[place])(context, builder, args[place]).data
        return builder.bitcast(pointer, vector_type.as_pointer()) if vectors else pointer

    def splat(builder: Any, value: Any, kind: Any) -> Any:
        empty = ir.Constant(kind, ir.Undefined)
        single = builder.insert_element(empty, value, ir.Constant(int32, 0))
        return builder.shuffle_vector(single, empty, ir.Constant(ir.VectorType(int32, kind.count), [0] * kind.count))

    def larger(builder: Any, left: Any, right: Any) -> Any:
        return builder.select(builder.fcmp_ordered(">", left, right), left, right)

    def maximum(builder: Any, value: Any) -> Any:
        kind = ir.FunctionType(scalar, [vector_type])
        function = builder.module.declare_intrinsic(f"llvm.vector.reduce.fmax.{suffix}", (), kind)
        return builder.call(function, [value])

    def product(is_max: bool) -> Any:
        @intrinsic  # type: ignore[untyped-decorator,unused-ignore]
        def operation(typing: Any, vector: Any, matrix: Any, rows: Any, out: Any) -> Any:
            def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
                numbers = data(context, builder, signature, args, 0, vectors=False)
                cells, target = (data(context, builder, signature, args, place) for place in (1, 3))
                chunk_size = 8  # so many sums stay in registers
                results = []
                for begin in range(0, blocks, chunk_size):
                    chunk = range(begin, min(begin + chunk_size, blocks))
                    unroll = 4 if len(chunk) < 3 else 2 if len(chunk) < 6 else 1  # hides the latency of the sum
                    before = builder.block
                    body, after = builder.append_basic_block(), builder.append_basic_block()
                    builder.branch(body)
                    builder.position_at_end(body)
                    row = builder.phi(int64)
                    row.add_incoming(ir.Constant(int64, 0), before)
                    sums = [[builder.phi(vector_type) for _ in chunk] for _ in range(unroll)]
                    updated = []
                    for step, accumulators in enumerate(sums):
                        here = builder.add(row, ir.Constant(int64, step))
                        factor = splat(builder, builder.load(builder.gep(numbers, [here])), vector_type)
                        base = builder.mul(here, ir.Constant(int64, blocks))
                        for block, accumulator in zip(chunk, accumulators, strict=True):
                            accumulator.add_incoming(lowest if is_max else zeros, before)
                            place = builder.add(base, ir.Constant(int64, block))
                            cell = builder.load(builder.gep(cells, [place]), align=4)
                            if is_max:
                                value = larger(builder, builder.fadd(cell, factor), accumulator)
                            else:
                                term = builder.fmul(cell, factor, flags=("contract",))
                                value = builder.fadd(accumulator, term, flags=("contract",))
                            updated.append((accumulator, value))
                    following = builder.add(row, ir.Constant(int64, unroll))
                    row.add_incoming(following, body)
                    for accumulator, value in updated:
                        accumulator.add_incoming(value, body)
                    builder.cbranch(builder.icmp_signed("<", following, args[2]), body, after)
                    builder.position_at_end(after)
                    values = [value for _, value in updated]
                    for column, block in enumerate(chunk):
                        total = values[column]
                        for step in range(1, unroll):
                            other = values[step * len(chunk) + column]
                            total = larger(builder, total, other) if is_max else builder.fadd(total, other)
                        builder.store(total, builder.gep(target, [ir.Constant(int64, block)]), align=4)
                        results.append(total)
                if not is_max:
                    return context.get_dummy_value()
                best = results[0]
                for other in results[1:]:
                    best = larger(builder, best, other)
                return maximum(builder, best)

            return (scalar_type if is_max else types.void)(vector, matrix, types.int64, out), generate

        return operation

    def lane_mask(builder: Any, count: Any, block: int) -> Any:
        positions = ir.Constant(ir.VectorType(int64, lanes), [block * lanes + lane for lane in range(lanes)])
        return builder.icmp_signed("<", positions, splat(builder, count, ir.VectorType(int64, lanes)))

    @intrinsic  # type: ignore[untyped-decorator,unused-ignore]
    def load(typing: Any, row: Any, count: Any, out: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            source, target = (data(context, builder, signature, args, place) for place in (0, 2))
            kind = ir.FunctionType(vector_type, [vector_type.as_pointer(), int32, mask_type, vector_type])
            masked = builder.module.declare_intrinsic(f"llvm.masked.load.{suffix}.p0", (), kind)
            best = lowest
            for block in range(blocks):
                place = ir.Constant(int64, block)
                mask = lane_mask(builder, args[1], block)
                value = builder.call(masked, [builder.gep(source, [place]), align, mask, lowest])
                builder.store(value, builder.gep(target, [place]), align=4)
                best = larger(builder, value, best)
            return maximum(builder, best)

        return scalar_type(row, types.int64, out), generate

    @intrinsic  # type: ignore[untyped-decorator,unused-ignore]
    def store(typing: Any, values: Any, count: Any, row: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            source, target = (data(context, builder, signature, args, place) for place in (0, 2))
            kind = ir.FunctionType(ir.VoidType(), [vector_type, vector_type.as_pointer(), int32, mask_type])
            masked = builder.module.declare_intrinsic(f"llvm.masked.store.{suffix}.p0", (), kind)
            for block in range(blocks):
                place = ir.Constant(int64, block)
                value = builder.load(builder.gep(source, [place]), align=4)
                mask = lane_mask(builder, args[1], block)
                builder.call(masked, [value, builder.gep(target, [place]), align, mask])
            return context.get_dummy_value()

        return types.void(values, types.int64, row), generate

    return SimpleNamespace(matvec=product(False), maxplus=product(True), load=load, store=store)


@functools.cache
def scaled_kernels(width: int) -> SimpleNamespace:
    """Compile the scaled float32 recursions for rows padded to `width` (a constant lets the compiler unroll)."""
    import numba

    # Rows are copied in loops: assigning one array to another would compile seconds of broadcasting checks.
    # "reassoc" lets sums use vector lanes. No "nnan", no "ninf": infinities and NaN keep their meaning.
    jit = numba.njit(error_model="numpy", nogil=True, fastmath={"contract", "reassoc"})
    jit_exact = numba.njit(error_model="numpy", nogil=True, fastmath={"contract"})
    f32, i32 = np.float32, np.int32
    numbers: Any = f32(0.0), f32(1.0), f32(LOST), f32(HARM)
    zero, one, lost, harm = numbers
    operations = _vector_operations(width, "float32")
    matvec, load, store = operations.matvec, operations.load, operations.store

    def exponentials(row: Any, shift: Any, out: Any) -> None:
        """out = exp(row - shift) for row <= shift: the polynomial of Cephes' expf, in a form that uses vector lanes."""
        for j in range(width):
            x = row[j] - shift
            n = np.floor(x * f32(1.44269504) + f32(0.5))
            r = (x - n * f32(0.693359375)) - n * f32(-2.12194440e-4)
            p = f32(1.9875691500e-4)
            p = p * r + f32(1.3981999507e-3)
            p = p * r + f32(8.3334519073e-3)
            p = p * r + f32(4.1665795894e-2)
            p = p * r + f32(1.6666665459e-1)
            p = p * r + f32(5.0000001201e-1)
            p = p * r * r + r + one
            power = i32((i32(n) + i32(127)) << i32(23)).view(f32)
            out[j] = zero if x < f32(-87.0) else p * power

    exponentials = jit_exact(exponentials)

    def felt(alpha: Any, weights: Any, norms: Any, kernel_t: Any, rows: int, end: Any, work: Any) -> bool:
        """Whether an entry that was set to 0 may be felt in this sentence: some backward variable is large."""
        beta, vector = work[0], work[1]
        total = zero
        for j in range(width):
            total += alpha[-1, j] * end[j]
        inverse = one / total
        if not inverse < harm:
            return True
        for j in range(width):
            beta[j] = end[j] * inverse
        for t in range(alpha.shape[0] - 1, -1, -1):
            inverse = one / norms[t]
            top = zero
            for j in range(width):
                scaled = beta[j] * inverse
                top += scaled
                vector[j] = weights[t, j] * scaled
            if not top < harm:
                return True
            matvec(vector, kernel_t, rows, beta)
        return False

    felt = jit(felt)

    def forward(
        emissions: Any, lengths: Any, scores: Any, tops: Any, always_check: bool, work: Any, tape: Any, partitions: Any
    ) -> None:
        """Scaled forward variables of each sentence, and its log partition; retry[b] where the log domain is needed.

        scores: exponentials of start, transitions, transitions transposed, end, each less its maximum; tops: what start and end
        lost by that, and what transitions lost. tape: alphas, weights (exponentials of the emissions) and norms of the real
        steps of all sentences one after the other; retry.
        """
        start, kernel, kernel_t, end = scores
        constant, kernel_max = tops
        alphas, weights, norms, retry = tape
        num_tags = emissions.shape[2]
        rows = (num_tags + 3) // 4 * 4
        row, e, out = work[0], work[1], work[2]
        first = 0
        for b in range(emissions.shape[0]):
            steps = lengths[b]
            log_total = constant + (steps - 1) * kernel_max
            running = 1.0
            flushed = zero
            for j in range(width):
                out[j] = start[j]
            for t in range(steps):
                at = first + t
                top = load(emissions[b, t], num_tags, row)
                e = weights[at]
                exponentials(row, top, e)
                if t > 0:
                    matvec(alphas[at - 1], kernel, rows, out)
                alpha = alphas[at]
                total = zero
                for j in range(width):
                    value = out[j] * e[j]
                    low = value < lost
                    flushed += one if low & (out[j] > zero) else zero
                    value = zero if low else value
                    alpha[j] = value
                    total += value
                inverse = one / total
                for j in range(width):
                    alpha[j] *= inverse
                norms[at] = total
                running *= total
                if not (running > 1e-200 and running < 1e200):
                    log_total += math.log(running)
                    running = 1.0
                log_total += top
            last = 0.0
            for j in range(width):
                last += alphas[first + steps - 1, j] * end[j]
            partitions[b] = log_total + math.log(running) + math.log(last)
            bad = not (last > 1e-18) or not math.isfinite(partitions[b])
            if not bad and (flushed > zero or always_check):
                past = first + steps
                bad = felt(alphas[first:past], weights[first:past], norms[first:past], kernel_t, rows, end, work)
            retry[b] = bad
            first += steps

    forward = jit(forward)

    def backward(
        lengths: Any, tags: Any, factors: Any, scores: Any, work: Any, tape: Any, gradient: Any, pairs: Any, ends: Any
    ) -> None:
        """factors[b] * (gold - marginals) into gradient (batch, seq, num_tags).

        ends (2, num_tags) gains -factors * the marginals of the first and last steps. pairs gets what, multiplied into alphas,
        gives the sum of factors * pair marginals (but for the transitions' kernel).
        """
        _, _, kernel_t, end = scores
        alphas, weights, norms, retry = tape
        num_tags = gradient.shape[2]
        rows = (num_tags + 3) // 4 * 4
        beta, node = work[0], work[1]
        first = 0
        for b in range(lengths.shape[0]):
            steps = lengths[b]
            gradient[b, steps:] = zero
            pairs[first + steps - 1] = zero
            if retry[b]:
                pairs[first : first + steps] = zero
                alphas[first : first + steps] = zero
                first += steps
                continue
            factor = factors[b]
            for j in range(width):
                beta[j] = end[j]
            for t in range(steps - 1, -1, -1):
                at = first + t
                alpha = alphas[at]
                total = zero
                for j in range(width):
                    node[j] = alpha[j] * beta[j]
                    total += node[j]
                inverse = one / total
                scale = -factor * inverse
                for j in range(width):
                    node[j] *= scale
                store(node, num_tags, gradient[b, t])
                if t == steps - 1:
                    for j in range(num_tags):
                        ends[1, j] += node[j]
                if t == 0:
                    for j in range(num_tags):
                        ends[0, j] += node[j]
                else:
                    inverse /= norms[at]
                    pair = pairs[at - 1]
                    weight = weights[at]
                    for j in range(width):
                        value = (weight[j] * inverse) * beta[j]
                        pair[j] = value if alpha[j] > zero else zero
                    matvec(pair, kernel_t, rows, beta)
                    for j in range(width):
                        pair[j] *= factor
            if tags.shape[0] > 0:
                for t in range(steps):
                    gradient[b, t, tags[b, t]] += factor
            first += steps

    backward = jit(backward)

    def curvature(
        lengths: Any, direction: Any, scores: Any, work: Any, tape: Any, product: Any, outer: Any, ends: Any
    ) -> None:
        """Derivative of the marginals along `direction` (batch, seq, num_tags) in the emissions.

        That is the covariance of every tag with the sum of the direction along a path. The forward and backward variables are
        accompanied by themselves times the mean of that sum over the paths that they stand for; the overall mean is taken
        off at each step. outer: tangents of the alphas, then as `pairs` of `backward`, then its tangents.
        """
        _, kernel, kernel_t, end = scores
        alphas, weights, norms, retry = tape
        tangents, pairs, pair_tangents = outer
        num_tags = product.shape[2]
        rows = (num_tags + 3) // 4 * 4
        beta, slope, node, delta, out = work[0], work[1], work[2], work[3], work[4]
        first = 0
        for b in range(lengths.shape[0]):
            steps = lengths[b]
            product[b, steps:] = zero
            past = first + steps
            if retry[b]:
                alphas[first:past] = zero
                tangents[first:past] = zero
            pairs[past - 1] = zero
            pair_tangents[past - 1] = zero
            if retry[b]:
                pairs[first:past] = zero
                pair_tangents[first:past] = zero
                first = past
                continue
            out[:] = zero
            for t in range(steps):
                at = first + t
                load(direction[b, t], num_tags, delta)
                if t > 0:
                    matvec(tangents[at - 1], kernel, rows, out)
                alpha, weight, tangent = alphas[at], weights[at], tangents[at]
                inverse = one / norms[at]
                mean = zero
                for j in range(width):
                    value = (weight[j] * inverse) * out[j] + alpha[j] * delta[j]
                    value = value if alpha[j] > zero else zero
                    tangent[j] = value
                    mean += value
                for j in range(width):
                    tangent[j] -= mean * alpha[j]
            for j in range(width):
                beta[j] = end[j]
            slope[:] = zero
            for t in range(steps - 1, -1, -1):
                at = first + t
                alpha, weight, tangent = alphas[at], weights[at], tangents[at]
                total = zero
                for j in range(width):
                    total += alpha[j] * beta[j]
                inverse = one / total
                mean, shift = zero, zero
                for j in range(width):
                    node[j] = (tangent[j] * beta[j] + alpha[j] * slope[j]) * inverse
                    mean += node[j]
                    shift += alpha[j] * slope[j]
                shift *= inverse
                if t < steps - 1:
                    pair, pair_tangent = pairs[at], pair_tangents[at]
                    for j in range(width):
                        pair_tangent[j] -= mean * pair[j]
                for j in range(width):
                    node[j] -= mean * (alpha[j] * beta[j] * inverse)
                store(node, num_tags, product[b, t])
                if t == steps - 1:
                    for j in range(num_tags):
                        ends[1, j] += node[j]
                if t == 0:
                    for j in range(num_tags):
                        ends[0, j] += node[j]
                else:
                    load(direction[b, t], num_tags, delta)
                    inverse /= norms[at]
                    pair, pair_tangent = pairs[at - 1], pair_tangents[at - 1]
                    for j in range(width):
                        value = weight[j] * inverse
                        value = value if alpha[j] > zero else zero
                        pair[j] = value * beta[j]
                        pair_tangent[j] = value * (slope[j] + (delta[j] - shift) * beta[j]) if alpha[j] > zero else zero
                    matvec(pair, kernel_t, rows, beta)
                    matvec(pair_tangent, kernel_t, rows, slope)
            first = past

    curvature = jit(curvature)
    return SimpleNamespace(forward=forward, backward=backward, curvature=curvature)
