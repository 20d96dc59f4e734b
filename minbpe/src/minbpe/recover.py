"""The merges behind ranks: which two tokens each token was made of.

A file of ranks lists tokens in the order of their making, but not their parts. Doing on a token's
bytes all merges of lower rank gives the parts: two of them, or the token is out of reach.

Encoding by ranks merges any two neighbours whose bytes together are a token, the lowest rank first.
Where no token is out of reach, that gives the same ids as encoding by the recovered merges. For let
two neighbours make the bytes of token t, when what came before were recovered merges. None of those
crossed the outer ends of the two, as a merge is never undone; so between the ends all went as it
goes on t's bytes alone, where t's two parts merge to t as soon as t's turn has come. So the
neighbours are those parts, and it is t's turn. A token out of reach does no harm when no two tokens
spell it: only a pre-token equal to it becomes it, as encoding by ranks looks there first.

The same holds for training: it puts no token out of reach, and can't make two of equal bytes.
"""

from collections.abc import Mapping

from minbpe.textbook import Pair


def recover_merges(ranks: Mapping[bytes, int]) -> dict[Pair, int]:
    """Return the merges, (left id, right id) to id in the order of rank: `{(104, 117): 256}`.

    `ranks` holds all single bytes. A token out of reach has no merge.
    """
    made = {token: rank for token, rank in ranks.items() if len(token) == 1}
    merges: dict[Pair, int] = {}
    halves: dict[int, Pair] = {}
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        # Of the ways to cut a token into two, one at most is where encoding arrives.
        for cut in range(1, len(token)):
            left = made.get(token[:cut])
            if left is None:
                continue
            right = made.get(token[cut:])
            if right is not None and _stay_apart(left, right, merges, halves):
                made[token] = rank
                merges[left, right] = rank
                halves[rank] = left, right
                break
    return merges


def differing_token(ranks: Mapping[bytes, int], merges: Mapping[Pair, int]) -> int | None:
    """Return a token, if any, for which encoding by ranks and by merges may differ.

    `merges` are the recovered ones. It is a token out of reach that two tokens spell: ranks make it
    of them whenever they meet.
    """
    if len(merges) + 256 == len(ranks):
        return None
    reached = set(merges.values())
    for token, rank in ranks.items():
        if len(token) > 1 and rank not in reached:
            cuts = range(1, len(token))
            if any(token[:cut] in ranks and token[cut:] in ranks for cut in cuts):
                return rank
    return None


def _stay_apart(
    left: int, right: int, merges: Mapping[Pair, int], halves: Mapping[int, Pair]
) -> bool:
    """Tell whether the bytes of two tokens are encoded as these two, by the merges so far.

    They are unless, at some time, the two tokens at the border would have merged. So go back in
    time: whichever of them was made last comes apart, and its inner half is at the border.
    """
    while True:
        of_left, of_right = halves.get(left), halves.get(right)
        if of_left is not None and (of_right is None or left > right):
            limit, left = left, of_left[1]
        elif of_right is not None:
            # Of equal pairs in "aaa" the left one merges: at the same time is too early here.
            limit, right = right + 1, of_right[0]
        else:
            return True
        if merges.get((left, right), limit) < limit:
            return False
