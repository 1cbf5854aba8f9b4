"""Who may go on to the stages, and when: a bound on what is inside, and fair turns for what waits."""

from router.dispatch.admission.fair_order import Capacity, CostClass
from router.dispatch.admission.pending import Admission
from router.dispatch.admission.turns import AdmissionTurns, Applicant, Turn

__all__ = ["Admission", "AdmissionTurns", "Applicant", "Capacity", "CostClass", "Turn"]
