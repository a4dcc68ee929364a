"""What the device may still use of a row: the pages past its tokens, by whatever the row was used for before."""

from __future__ import annotations

from vattention.device_fence import Proof


class Mark:
    """Stands for all uses of a row up to a moment. A later use makes another mark, so who waited for one and finds it
    still the row's may unmap.

    Invariant: `proofs` cover those uses once `is_set`; before, the cache's fence has yet to be asked for some of them.
    """

    __slots__ = ("is_set", "proofs")

    def __init__(self, proofs: tuple[Proof, ...] = (), *, is_set: bool) -> None:
        self.proofs = proofs
        self.is_set = is_set

    def done(self) -> bool:
        return self.is_set and all(proof.done() for proof in self.proofs)

    def wait(self) -> None:
        """Until the device is done with what the proofs cover."""
        for proof in self.proofs:
            proof.wait()

    def set(self, proof: Proof | None) -> None:
        """`proof` was taken after the uses; None: they were over by then."""
        self.proofs += (proof,) if proof is not None else ()
        self.is_set = True

    def after_use(self, proof: Proof | None = None) -> Mark:
        """The mark after one more use, which `proof` covers if there is one; else the fence must be asked."""
        pending = tuple(old for old in self.proofs if not old.done())  # or they would add up, use by use
        return Mark(pending + ((proof,) if proof is not None else ()), is_set=self.is_set and proof is not None)
