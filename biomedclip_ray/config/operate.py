"""The sections of the configuration for whoever pays and waits: what a run may cost, and who is told how it stands."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator, model_validator

from biomedclip_ray.config.section import Section

ROLES = ("head", "cpu", "gpu")
"""What a node is where its type has no name, or no price of its own."""

Amount = Annotated[float, Field(gt=0)]


class Budget(Section):
    """What a run may take. One that is tried again under its own id (KubeRay, Slurm) goes on with what is left of it; a
    new submission begins anew.
    """

    hours: Amount | None = None
    """Hours after which the run ends (exit 3) and says what is left to do; the same command goes on from there."""
    money: Amount | None = None
    """Money, in the currency of `prices`, after which it ends likewise; every node that is up counts, whatever it
    does.
    """
    prices: dict[str, Annotated[float, Field(ge=0)]] = Field(default_factory=dict)
    """Price of a node and hour by node type, as the cluster's file calls it, or for all others of a kind: head
    (without CPUs), cpu, gpu.
    """

    @model_validator(mode="after")
    def _money_has_prices(self) -> Budget:
        if self.money is not None and not self.prices:
            raise ValueError(
                f"budget.money={self.money:g} needs what a node costs an hour: budget.prices={{cpu: 1.6, gpu: 3.0}}"
            )
        return self


class Notice(Section):
    """Who is told that a run has finished, has failed, or waits for nodes."""

    webhook: SecretStr | None = None
    """URL that gets an HTTP POST of JSON: event (finished, failed, waiting), run, root, state, exit_code, stage,
    text.
    """
    deadline_s: Amount = 10.0
    """Seconds that the run's end waits for the answer; a webhook that does not answer is a warning and fails no run."""

    @field_validator("webhook")
    @classmethod
    def _is_http(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            parts = urlsplit(value.get_secret_value())
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise ValueError("notice.webhook is no URL; write https://HOST/PATH")
        return value
