"""The recurrences of `makemore.rnn` over a batch, with backward passes derived by hand.

Shapes: B items, T time, H = n_hidden, G gates (1, 3, 4 for rnn, gru, lstm), N places of a batch,
P <= N prefixes: the places that are computed.

What makes this several times as fast as a loop over padded characters (`makemore.plain_rnn`):

1. What an input adds to the gates does not depend on the state, so it comes ready: `x` (P, G * H).
2. Nothing is computed past an item's end, nor twice: items that begin alike have the same states
   there, and share them (`Plan`).
3. Backward through time, only what depends on a later state is in the loop. The factors that the
   forward pass has settled are worked out for all prefixes at once before it, and the weights'
   gradient is one matrix product after it, where autograd takes one a step.
4. The loops work in place: a step of the GRU is five operations forward and three backward.
"""

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.function import once_differentiable

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Plan:
    """The order in which a batch is computed: level by level, a level being a time.

    Rows are taken longest first, so that at any time the rows which go on are the first ones.
    With shared prefixes, a row computes nothing where an earlier one has the same beginning:

        row       prefixes 0..9 by level    counts   1  2  3  3  1
        . e m m a    0  1  3  6  9          parents  -  0  0  -  -    "-": the first ones, in order
        . e v a      .  .  4  7                         0  0
        . a v a      .  2  5  8                            1
        . a v        .  .  .                places   0 1 3 6 9, 0 1 4 7, 0 2 5 8, 0 2 5
    """

    counts: list[int]
    """Prefixes in each level."""
    cuts: list[int]
    """Those of each level that go on, which are its first ones, and the others, in turn."""
    parents: list[Tensor | None]
    """For each level but the first, which of the level before its prefixes continue."""
    continued: Tensor
    """The same as numbers of prefixes, in one tensor (P - counts[0],)."""
    ids: Tensor
    """A prefix's last character, (P,)."""
    at: Tensor
    """Where the kept places lie in the batch, as row * T + time, level by level, (N,)."""
    prefixes: Tensor | None
    """The prefix of each of these, (N,); None for 0, 1, 2 and so on: nothing is shared."""

    @property
    def places(self) -> Tensor:
        """The prefix of every kept place, (N,), in the order of idx[keep]."""
        order = self.at.argsort()
        return order if self.prefixes is None else self.prefixes.index_select(0, order)


def make_plan(idx: Tensor, keep: Tensor, share: bool) -> Plan:
    """Plan the computation of the places `keep` (B, T), which in each row come first.

    With `share`, items that begin alike share what is computed for their beginning.
    """

    def tensor(array: Ints) -> Tensor:
        return torch.from_numpy(array).to(idx.device)

    # NumPy takes a third of the time that torch takes for as small arrays as these.
    kept, ids = keep.cpu().numpy().T, idx.cpu().numpy().T  # (T, B)
    at = np.arange(idx.numel()).reshape(idx.shape).T
    if (kept[:, 1:] > kept[:, :-1]).any():
        order = np.argsort(-kept.sum(0), kind="stable")
        kept, ids, at = kept[:, order], ids[:, order], at[:, order]
    computed, prefixes = kept, None
    if share:
        owners = _owners(ids, kept)
        computed = kept & (owners == np.arange(kept.shape[1]))
        number = computed.cumsum().reshape(kept.shape) - 1  # of the prefixes, level by level
        number = np.take_along_axis(number, owners, axis=1)
        prefixes, continued = tensor(number[kept]), number[:-1][computed[1:]]
    counts: list[int] = [n for n in computed.sum(1).tolist() if n]
    if share:
        parents, inner = _parents(continued, counts)
    else:  # the first ones of the level before, in order
        n = np.array(counts, dtype=np.int64)
        continued = np.arange(n[:1].sum(), n.sum()) - np.repeat(n[:-1], n[1:])
        parents, inner = [None] * (len(counts) - 1), counts[1:]
    return Plan(
        counts=counts,
        cuts=[n for on, all_ in zip([*inner, 0], counts, strict=False) for n in (on, all_ - on)],
        parents=[None if p is None else tensor(p) for p in parents],
        continued=tensor(continued),
        ids=tensor(ids[computed]),
        at=tensor(at[kept]),
        prefixes=prefixes,
    )


def _parents(continued: Ints, counts: list[int]) -> tuple[list[Ints | None], list[int]]:
    """Return what each level but the first continues of the one before, and how many of it.

    None stands for the first ones in order, which is how it is as soon as no two rows agree.
    """
    parents: list[Ints | None] = []
    inner: list[int] = []
    begin = end = 0  # of the level before; `continued` lacks the first level
    for before, count in itertools.pairwise(counts):
        found = continued[end : end + count] - begin
        begin, end = begin + before, end + count
        parents.append(None if (found == np.arange(count)).all() else found)
        inner.append(int(found.max()) + 1)
    return parents, inner


def _owners(ids: Ints, active: NDArray[np.bool_]) -> Ints:
    """Return for every place the first row that has the same beginning, (T, B)."""
    T, B = ids.shape
    rows = np.arange(B)
    owners = np.tile(rows, (T, 1))
    n_ids = int(ids.max(initial=0)) + 1
    first = np.empty(B * n_ids, dtype=np.int64)
    before = np.zeros(B, dtype=np.int64)
    for t, n in enumerate(active.sum(1).tolist()):
        prefix = before[:n] * n_ids + ids[t, :n]  # the shorter prefix, and one character more
        first[prefix[::-1]] = rows[:n][::-1]  # of several rows, the one written last: the first
        owners[t, :n] = before = first[prefix]
        if (before == rows[:n]).all():
            break  # no two rows agree any longer
    return owners


def elman(x: Tensor, w: Tensor, start: Tensor, plan: Plan) -> Tensor:
    """Return the states of a tanh network (Elman, 1990; Mikolov et al., 2010, eq. 1).

        h[t] = tanh(x[t] + W h[t-1])

    `x` (P, H) is the input's part, bias included, `w` (H, H), `start` (H,) the state before the
    first character; the states (P, H) are in the plan's order, as `x` is.
    """
    result: Tensor = _Elman.apply(x, w, start, plan)  # type: ignore[no-untyped-call]
    return result


def gru(x: Tensor, w: Tensor, bias: Tensor, start: Tensor, plan: Plan) -> Tensor:
    """Return the states of gated recurrent units (Cho et al., 2014, eqs. 5 to 8).

        r[t] = sigmoid(x_r[t] + W_r h[t-1])                reset
        z[t] = sigmoid(x_z[t] + W_z h[t-1])                update
        n[t] = tanh(x_n[t] + r[t] * (W_n h[t-1] + bias))   candidate
        h[t] = (1 - z[t]) * n[t] + z[t] * h[t-1]

    The reset gate sits behind the product with W_n, as in cuDNN and PyTorch, where Cho et al. have
    W_n (r * h[t-1]): so the three products are one, (P, H) by (H, 3 H).

    `x` (P, 3 H) and `w` (3 H, H) hold r, z, n in this order; `bias` and `start` are (H,).
    """
    result: Tensor = _GRU.apply(x, w, bias, start, plan)  # type: ignore[no-untyped-call]
    return result


def lstm(x: Tensor, w: Tensor, start: Tensor, start_cell: Tensor, plan: Plan) -> Tensor:
    """Return the states of long short-term memory, with forget gates (Gers et al., 2000).

        o, i, f[t] = sigmoid(x_{o,i,f}[t] + W_{o,i,f} h[t-1])      output, input, forget
        g[t]       = tanh(x_g[t] + W_g h[t-1])                     candidate
        c[t]       = f[t] * c[t-1] + i[t] * g[t]
        h[t]       = o[t] * tanh(c[t])

    Hochreiter & Schmidhuber (1997) have f = 1, which never forgets. `x` (P, 4 H) and `w` (4 H, H)
    hold o, i, f, g in this order, so that the sigmoids lie side by side; `start` and `start_cell`
    are (H,).
    """
    result: Tensor = _LSTM.apply(x, w, start, start_cell, plan)  # type: ignore[no-untyped-call]
    return result


def _add_product(now: Tensor, before: Tensor, wt: Tensor, parents: Tensor | None) -> Tensor:
    """Add W h[t-1] to a level, in place; `before` is h[t-1] where it goes on, `wt` W transposed."""
    if parents is None:
        return now.addmm_(before, wt)
    # A product for each prefix that goes on, not for each of its continuations.
    return now.add_((before @ wt).index_select(0, parents))


def _rows(before: Tensor, parents: Tensor | None) -> Tensor:
    """Return for every prefix of a level the row of the one that it continues."""
    return before if parents is None else before.index_select(0, parents)


def _sums(gradient: Tensor, before: Tensor, parents: Tensor | None) -> Tensor:
    """Undo `_rows`: sum a level's gradient over the prefixes that continue the same one."""
    if parents is None:
        return gradient
    sums = gradient.new_zeros(len(before), gradient.shape[1])
    return sums.index_add_(0, parents, gradient)


def _all_before(plan: Plan, states: Tensor, start: Tensor) -> Tensor:
    """Return what every prefix continues: (P, H)."""
    first = start.expand(plan.counts[0], -1)
    return torch.cat([first, states.index_select(0, plan.continued)])


def _product_gradients(
    plan: Plan, d: Tensor, before: Tensor, w: Tensor, start: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the gradients of W and `start` by all products; `before` is without `start`."""
    first = d[: plan.counts[0]].sum(0)
    return (d[plan.counts[0] :].t() @ before).addr_(first, start), first @ w


# In the backward passes, g[t] is the loss's gradient by h[t] and d[t] that by the sum of which a
# non-linearity is taken. Level 0 continues nothing but `start`: one product for all its rows.


class _Elman(torch.autograd.Function):
    """d[t] = g[t] * (1 - h[t]^2); g[t-1] += W^T d[t]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, start: Tensor, plan: Plan) -> Tensor:
        h, wt = x.clone(), w.t()
        now, before = h.split_with_sizes(plan.counts), h.split_with_sizes(plan.cuts)[::2]
        now[0].add_(w @ start).tanh_()
        for h_t, before_t, parents in zip(now[1:], before, plan.parents, strict=False):
            _add_product(h_t, before_t, wt, parents).tanh_()
        ctx.save_for_backward(w, start, h)
        ctx.plan = plan
        return h

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        w, start, h = ctx.saved_tensors
        plan: Plan = ctx.plan
        g = grad.clone(memory_format=torch.contiguous_format)
        d = 1 - h * h
        g_now, d_now, g_before = (
            g.split_with_sizes(plan.counts),
            d.split_with_sizes(plan.counts),
            g.split_with_sizes(plan.cuts)[::2],
        )
        levels = list(zip(g_now[1:], d_now[1:], g_before, plan.parents, strict=False))
        for g_t, d_t, before, parents in reversed(levels):
            before.addmm_(_sums(d_t.mul_(g_t), before, parents), w)
        d_now[0].mul_(g_now[0])
        before = h.index_select(0, plan.continued)
        return d, *_product_gradients(plan, d, before, w, start), None


class _GRU(torch.autograd.Function):
    """With k the factors that the forward pass has settled, d[t] = g[t] * k[t] for every gate.

    By n: k_n = (1 - z) (1 - n^2); by W_n h[t-1] + bias, called q: k_q = k_n r; by r's sum:
    k_r = k_q q (1 - r); by z's: k_z = (h[t-1] - n) z (1 - z). g[t-1] += g[t] z[t] + W^T d_rzq[t].
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, bias: Tensor, start: Tensor, plan: Plan) -> Tensor:
        H, wt = len(start), w.t()
        gates, n, h = x.clone(), x[:, 2 * H :].clone(), x.new_empty(len(x), H)
        gates[:, 2 * H :] = bias
        parts = (gates, gates[:, : 2 * H], *gates.chunk(3, dim=1), n, h)
        levels = zip(*(part.split_with_sizes(plan.counts) for part in parts), strict=True)
        befores = [start, *h.split_with_sizes(plan.cuts)[:-2:2]]
        for (gates_t, rz, r, z, q, n_t, h_t), before, parents in zip(
            levels, befores, [None, *plan.parents], strict=True
        ):
            if before is start:
                gates_t.add_(w @ start)
            else:
                _add_product(gates_t, before, wt, parents)
            rz.sigmoid_()
            n_t.addcmul_(r, q).tanh_()
            torch.lerp(n_t, _rows(before, parents), z, out=h_t)
        ctx.save_for_backward(w, start, gates, n, h)
        ctx.plan = plan
        return h

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        w, start, gates, n, h = ctx.saved_tensors
        plan: Plan = ctx.plan
        n0, H = plan.counts[0], len(start)
        r, z, q = gates.chunk(3, dim=1)
        g = grad.clone(memory_format=torch.contiguous_format)
        before = _all_before(plan, h, start)
        d = 1 - gates  # k at first
        d_r, d_z, d_q = d.chunk(3, dim=1)
        k_n = (n * n).neg_().add_(1).mul_(d_z)
        torch.mul(k_n, r, out=d_q)
        d_r.mul_(q).mul_(d_q)
        d_z.mul_(z).mul_(before - n)
        parts = (g, z, d, d.view(-1, 3, H))
        levels = list(zip(*(part.split_with_sizes(plan.counts) for part in parts), strict=True))
        g_before = [None, *g.split_with_sizes(plan.cuts)[:-2:2]]
        for (g_t, z_t, d_t, gates_t), sums, parents in zip(
            levels[::-1], g_before[::-1], [*plan.parents[::-1], None], strict=True
        ):
            gates_t.mul_(g_t.unsqueeze(1))
            if sums is not None:
                sums.addmm_(_sums(d_t, sums, parents), w)
                if parents is None:
                    sums.addcmul_(g_t, z_t)
                else:
                    sums.index_add_(0, parents, g_t * z_t)
        d_x = d.clone()
        torch.mul(g, k_n, out=d_x[:, 2 * H :])
        d_w, d_start = _product_gradients(plan, d, before[n0:], w, start)
        return d_x, d_w, d_q.sum(0), d_start + (g[:n0] * z[:n0]).sum(0), None


class _LSTM(torch.autograd.Function):
    """With e[t] the gradient by c[t], and k the settled factors as in the GRU.

    e[t] += g[t] o (1 - tanh(c)^2); d_o = g[t] tanh(c) o (1 - o); d_i = e[t] g i (1 - i);
    d_f = e[t] c[t-1] f (1 - f); d_g = e[t] i (1 - g^2); e[t-1] = e[t] f; g[t-1] += W^T d[t].
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, w: Tensor, start: Tensor, start_cell: Tensor, plan: Plan
    ) -> Tensor:
        H, wt = len(start), w.t()
        gates = x.clone()
        c, tanh_c, h = (x.new_empty(len(x), H) for _ in range(3))
        parts = (gates, gates[:, : 3 * H], *gates.chunk(4, dim=1), c, tanh_c, h)
        levels = zip(*(part.split_with_sizes(plan.counts) for part in parts), strict=True)
        h_before = [start, *h.split_with_sizes(plan.cuts)[:-2:2]]
        c_before = [start_cell, *c.split_with_sizes(plan.cuts)[:-2:2]]
        for (gates_t, oif, o, i, f, g, c_t, tanh_t, h_t), before, cell, parents in zip(
            levels, h_before, c_before, [None, *plan.parents], strict=True
        ):
            if before is start:
                gates_t.add_(w @ start)
            else:
                _add_product(gates_t, before, wt, parents)
            oif.sigmoid_()
            g.tanh_()
            torch.mul(f, _rows(cell, parents), out=c_t).addcmul_(i, g)
            torch.mul(o, torch.tanh(c_t, out=tanh_t), out=h_t)
        ctx.save_for_backward(w, start, start_cell, gates, c, tanh_c, h)
        ctx.plan = plan
        return h

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        w, start, start_cell, gates, c, tanh_c, h = ctx.saved_tensors
        plan: Plan = ctx.plan
        n0, H = plan.counts[0], len(start)
        o, i, f, candidate = gates.chunk(4, dim=1)
        g = grad.clone(memory_format=torch.contiguous_format)
        d = torch.addcmul(gates, gates, gates, value=-1)  # k at first: s (1 - s), sigmoid's slope
        d_o, d_i, d_f, d_g = d.chunk(4, dim=1)
        k_c = (tanh_c * tanh_c).neg_().add_(1).mul_(o)
        d_o.mul_(tanh_c)
        d_i.mul_(candidate)
        d_f.mul_(_all_before(plan, c, start_cell))
        torch.mul(candidate, candidate, out=d_g).neg_().add_(1).mul_(i)
        e = torch.zeros_like(g)
        parts = (g, e, k_c, f, d, d_o, d.view(-1, 4, H)[:, 1:])
        levels = list(zip(*(part.split_with_sizes(plan.counts) for part in parts), strict=True))
        g_before = [None, *g.split_with_sizes(plan.cuts)[:-2:2]]
        e_before = [g, *e.split_with_sizes(plan.cuts)[:-2:2]]
        for (g_t, e_t, k_t, f_t, d_t, o_t, ifg_t), sums, cell, parents in zip(
            levels[::-1], g_before[::-1], e_before[::-1], [*plan.parents[::-1], None], strict=True
        ):
            e_t.addcmul_(g_t, k_t)
            o_t.mul_(g_t)
            ifg_t.mul_(e_t.unsqueeze(1))
            if sums is not None:
                sums.addmm_(_sums(d_t, sums, parents), w)
                if parents is None:
                    torch.mul(e_t, f_t, out=cell)
                else:
                    cell.index_add_(0, parents, e_t * f_t)
        before = h.index_select(0, plan.continued)
        d_cell = (e[:n0] * f[:n0]).sum(0)
        return d, *_product_gradients(plan, d, before, w, start), d_cell, None
