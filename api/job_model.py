"""Which model a job runs on, and which collection it is about: vectors of two models never meet."""

from __future__ import annotations

from api.problems import invalid
from api.state import ApiState
from revln.db.collections.collections import Collection, get_collection
from revln.errors import FingerprintMismatch, NotFound
from revln.jobs.schemas import ModelOf, Operation, Parameters
from revln.models.base import ModelInfo
from revln.models.base import Operation as Ability

__all__ = ["fingerprint", "model_and_collection"]


def model_and_collection(
    state: ApiState, tenant: str, operation: Operation, wanted: str | None, parameters: Parameters
) -> tuple[ModelInfo | None, Collection | None]:
    """Return the model that the job runs on: the one named, else the collection's, else the default.

    None: the collection holds the user's own vectors.

    Raises:
        ValidationFailed, FingerprintMismatch
    """
    collection = _collection(state, tenant, parameters)
    if collection is not None and not collection.has_model:
        _check_without_model(operation, wanted, collection)
        return None, collection
    try:
        info = state.catalog.describe(wanted or (collection.model if collection else state.catalog.default))
        if operation.model is ModelOf.WHOLE and collection is not None:
            return _captioner(state, info, wanted, collection), collection
    except NotFound as err:
        raise invalid("/model", err.message) from err
    if operation.model is ModelOf.NEXT:
        _check_next(wanted, info)
    elif collection is not None and collection.model_fingerprint != info.joint_fingerprint:
        raise FingerprintMismatch(
            f"Collection {collection.name!r} holds vectors of {collection.model} ({collection.model_fingerprint}); "
            f'model {info.name} is {info.joint_fingerprint}. Leave out "model", or name another collection; or have '
            f"this one embedded by {info.name}: revln index migrate {collection.name} --model {info.name}"
        )
    return info, collection


def fingerprint(operation: Operation, info: ModelInfo | None, collection: Collection | None) -> str | None:
    """Return the one that the job carries: of its model or, without one, of its collection's vectors."""
    if info is None:
        return collection.model_fingerprint if collection else None
    return info.fingerprint if operation.model is ModelOf.WHOLE else info.joint_fingerprint


def _collection(state: ApiState, tenant: str, parameters: Parameters) -> Collection | None:
    name = getattr(parameters, "collection", None)
    if name is None:
        return None
    try:
        with state.db.read() as connection:
            return get_collection(connection, tenant, name)
    except NotFound as err:
        raise invalid("/input/collection", err.message) from err


def _check_without_model(operation: Operation, wanted: str | None, collection: Collection) -> None:
    if operation.model is ModelOf.NEXT:
        raise invalid("/input/collection", "its vectors are your own, which no model can make again")
    holds = f"{collection.name!r} holds {collection.holds}"
    if wanted is not None:
        raise invalid("/model", f"collection {holds} and has no model; leave it out")
    if operation.needs_model:
        raise invalid("/input/collection", f"{holds}; only a model's can be used here")


def _check_next(wanted: str | None, info: ModelInfo) -> None:
    if wanted is None:
        raise invalid("/model", "name the model that is to embed the collection; GET /v1/models lists them")
    if info.dim is None:
        raise invalid("/model", f"model {info.name} makes no vectors")


def _captioner(state: ApiState, info: ModelInfo, wanted: str | None, collection: Collection) -> ModelInfo:
    """Who captions: the model asked for, else the collection's if it can, else the default.

    Whoever it is, pictures are looked up in the collection with the collection's own model, which must be here.
    """
    if info.joint_fingerprint != collection.model_fingerprint:
        retriever = state.catalog.describe(collection.model)
        if retriever.joint_fingerprint != collection.model_fingerprint:
            raise FingerprintMismatch(
                f"Collection {collection.name!r} holds {collection.holds}, but {collection.model} is now "
                f"{retriever.joint_fingerprint}, so no evidence can be looked up. Name another collection, or none."
            )
    else:
        retriever = info
    if Ability.EMBED_IMAGE not in retriever.operations:
        raise invalid(
            "/input/collection",
            f"{collection.name!r} holds {collection.holds}, which reads no pictures; evidence needs one that does",
        )
    if wanted is None and Ability.CAPTION not in info.operations:
        return state.catalog.describe(state.catalog.default)
    return info
