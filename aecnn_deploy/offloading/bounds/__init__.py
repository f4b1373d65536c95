"""What no policy can exceed: the exact optimum of a slot, its relaxation, and the clairvoyant bound."""

from aecnn_deploy.offloading.bounds.clairvoyant import (
    ClairvoyantBound,
    PerSlotBound,
    clairvoyant_bound,
    per_slot_bound,
)
from aecnn_deploy.offloading.bounds.document import KINDS, bound_document, kind_by_size
from aecnn_deploy.offloading.bounds.policy import ExactPolicy
from aecnn_deploy.offloading.bounds.relaxation import lp_bound
from aecnn_deploy.offloading.bounds.slot import SlotOptimum, exact_slot

__all__ = [
    "KINDS",
    "ClairvoyantBound",
    "ExactPolicy",
    "PerSlotBound",
    "SlotOptimum",
    "bound_document",
    "clairvoyant_bound",
    "exact_slot",
    "kind_by_size",
    "lp_bound",
    "per_slot_bound",
]
