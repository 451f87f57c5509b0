"""Which divergence of a student's next-token distribution q from a teacher's p a run minimises, as a value.

One family, the generalised Jensen-Shannon divergence (`losses.generalised_jsd`), holds all three that matter: beta 0
is forward KL, beta 1 reverse KL. Shapes: n tokens of a piece, V rows of the student's head, C classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from smelt.core.errors import InvalidRequestError
from smelt.train.losses import generalised_jsd

LOG_FLOOR = -100.0  # a stored probability of 0 counts as e^-100, so that reverse KL stays finite


@dataclass(frozen=True, kw_only=True)
class Divergence:
    """Times temperature^2, which keeps the gradient's size when the temperature changes (Hinton et al. 2015).

    Raises InvalidRequestError for a beta outside 0..1 or a temperature that is not positive.
    """

    beta: float = 0.0
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.beta <= 1.0:
            raise InvalidRequestError(f"beta is {self.beta}; sought 0 (forward KL) to 1 (reverse KL)")
        if not 0.0 < self.temperature < math.inf:
            raise InvalidRequestError(f"the temperature is {self.temperature}; sought a positive number")

    @property
    def name(self) -> str:
        """For logs and cards."""
        return {0.0: "forward_kl", 1.0: "reverse_kl"}.get(self.beta, f"jsd_{self.beta:g}")

    def of_logits(self, student_nV: Tensor, teacher_nC: Tensor) -> Tensor:
        """Summed over the tokens, in nats, a scalar. C <= V: rows of the student's head behind C are padding."""
        real_nC = student_nV[:, : teacher_nC.shape[1]]
        each = generalised_jsd(real_nC, teacher_nC, beta=self.beta, temperature=self.temperature)
        return each.sum() + self.padding_price(student_nV, teacher_nC.shape[1])

    def of_classes(self, log_q_nC: Tensor, log_p_nC: Tensor) -> Tensor:
        """The same from log-probabilities, already taken at the temperature, over classes that cover all mass."""
        each = generalised_jsd(log_q_nC, log_p_nC.clamp_min(LOG_FLOOR), beta=self.beta)
        return each.sum() * self.temperature**2

    def padding_price(self, student_nV: Tensor, vocab_len: int) -> Tensor:
        """-log q(real vocabulary), summed: what the student pays for probability on padded rows of its head.

        With it forward KL on the real vocabulary equals forward KL on all rows against a teacher that gives the padded
        ones nothing, and every other divergence learns to avoid them too. 0 where nothing is padded.
        """
        if vocab_len == student_nV.shape[1]:
            return student_nV.new_zeros(())
        soft_nV = student_nV / self.temperature
        price = soft_nV.logsumexp(-1) - soft_nV[:, :vocab_len].logsumexp(-1)
        return price.sum() * self.temperature**2


FORWARD_KL = Divergence(beta=0.0)
REVERSE_KL = Divergence(beta=1.0)
