"""What a library says of the settings of a run once the run begins, as one sentence."""

from __future__ import annotations

from rlhf_lines.errors import about


class ToldSettings:
    """Mixin of a Trainer: an optimizer or a schedule that cannot be made is a mistake in the settings.

    The Trainer makes them when training begins, where an error of a library is a bug otherwise.
    """

    def create_optimizer(self, *args, **kwargs):
        """Make the optimizer."""
        settings = (
            f"optim {getattr(self.args.optim, 'value', self.args.optim)}, learning_rate {self.args.learning_rate:g}"
        )
        with about(f"the optimizer cannot be made ({settings})", ValueError, TypeError, ImportError):
            return super().create_optimizer(*args, **kwargs)

    def create_scheduler(self, *args, **kwargs):
        """Make the schedule of the learning rate."""
        kind = getattr(self.args.lr_scheduler_type, "value", self.args.lr_scheduler_type)
        with about(f"the schedule cannot be made (lr_scheduler_type {kind})", ValueError, TypeError, ImportError):
            return super().create_scheduler(*args, **kwargs)
