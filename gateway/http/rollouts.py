"""/admin/calibrators: those there are and where each stands in its tier's rollout, and a step by hand."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Header
from pydantic import BaseModel, ConfigDict, Field

from calibrators.artifact import ArtifactError
from gateway.errors import ConfigError
from gateway.http.errors import RequestError
from gateway.http.live import Live
from gateway.monitor.rollouts import Wish
from gateway.rolling import Rolling

Json = dict[str, Any]


class Wanted(BaseModel):
    """What is to be known of a step. tier: whose rollout takes it.  share: of conversations, for a canary.
    why: for the audit log."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    tier: str = Field(max_length=128)
    share: float | None = Field(default=None, gt=0, le=1)
    why: str = Field(min_length=1, max_length=1000)


def router(live: Live, rolling: Rolling | None) -> APIRouter:
    """Both routes; the key is checked by whoever includes them. rolling: None where none is configured."""
    routes = APIRouter()

    def there() -> Rolling:
        if rolling is None:
            raise RequestError(404, "No rollout is configured; say where to keep it under rollout.", code="no_rollout")
        return rolling

    @routes.get("/admin/calibrators")
    async def told() -> Json:
        """What is live, on trial, and why; the artefacts there are."""
        return await there().told()

    @routes.post("/admin/calibrators/{id:path}/{step}")
    async def act(
        id: str,  # noqa: A002  the path's own word
        step: Wish,
        wanted: Wanted,
        authorization: Annotated[str | None, Header(include_in_schema=False)] = None,
    ) -> Json:
        """One step. id: of the calibrator that it is about: its label, its hash, or the first digits of it.

        404 for a tier or a calibrator that is not there, 409 for a step that is not possible now.
        """
        found = there()
        if wanted.tier not in found.names:
            told = f"No such tier has a calibrator (there is: {', '.join(found.names)})."
            raise RequestError(404, told, param="tier")
        try:
            await found.act(
                wanted.tier,
                step,
                who=live.admins.who(authorization).name or "anonymous",
                why=wanted.why,
                artefact=id,
                share=wanted.share,
            )
        except ConfigError as error:
            raise RequestError(404, f"{error}.", param="id", code="no_such_artefact") from None
        except ArtifactError as error:
            raise RequestError(422, f"{error}.", param="id", code="bad_artefact") from None
        whole = await found.told()
        return {"tier": wanted.tier, **whole["tiers"].get(wanted.tier, {})}

    return routes
