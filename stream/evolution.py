"""What a record may become: new fields with a default, wider bounds; never what a reader of yesterday could not take.

Events carry the version in their `ce_type` (`sasrec-stream.click.v1`). As long as `breaking_changes` finds nothing, it
stays; what would break goes out under v2 on a topic of its own. Unknown fields are ignored on reading and kept in dead
letters, so that a writer may be newer than we are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Schema = Mapping[str, Any]

_LOWER = ("minimum", "exclusiveMinimum", "minLength", "minItems")
_UPPER = ("maximum", "exclusiveMaximum", "maxLength", "maxItems")


def breaking_changes(old: Schema, new: Schema) -> list[str]:
    """What of `new` refuses or loses something that was right by `old`, each named by its path; both self-contained."""
    return list(_compare(_resolved(old, old), _resolved(new, new), (old, new), "$"))


def _compare(old: Schema, new: Schema, roots: tuple[Schema, Schema], path: str) -> Iterator[str]:
    if "anyOf" in old or "anyOf" in new:
        yield from _lost_choices(old, new, roots, path)
        return
    for name, kept in _properties(old).items():
        if name not in _properties(new):
            yield f"{path}.{name} is gone"
        else:
            was, becomes = _resolved(kept, roots[0]), _resolved(_properties(new)[name], roots[1])
            yield from _compare(was, becomes, roots, f"{path}.{name}")
    for name in sorted({*new.get("required", ())} - {*old.get("required", ())}):
        yield f"{path}.{name} is required now"
    yield from _narrowed(old, new, path)
    if "items" in old and isinstance(new.get("items"), Mapping):
        yield from _compare(_resolved(old["items"], roots[0]), _resolved(new["items"], roots[1]), roots, f"{path}[]")


def _narrowed(old: Schema, new: Schema, path: str) -> Iterator[str]:
    if "type" in old and "type" in new and old["type"] != new["type"]:
        yield f"{path} was {old['type']} and is {new['type']}"
    if "enum" in new:
        yield from (
            f"{path} may not be {value!r} any more" for value in old.get("enum", ()) if value not in new["enum"]
        )
    for bound in _LOWER:
        if bound in new and not (bound in old and new[bound] <= old[bound]):
            yield f"{path}: {bound} is {new[bound]} now"
    for bound in _UPPER:
        if bound in new and not (bound in old and new[bound] >= old[bound]):
            yield f"{path}: {bound} is {new[bound]} now"


def _lost_choices(old: Schema, new: Schema, roots: tuple[Schema, Schema], path: str) -> Iterator[str]:
    """Each way to write a value must still be one, by whichever of the new ways."""
    ways = [_resolved(way, roots[1]) for way in new.get("anyOf", [new])]
    for way in old.get("anyOf", [old]):
        was = _resolved(way, roots[0])
        if all(list(_compare(was, becomes, roots, path)) for becomes in ways):
            yield f"{path} may not be {was.get('type', 'what it was')} any more"


def _properties(schema: Schema) -> Mapping[str, Schema]:
    found: Mapping[str, Schema] = schema.get("properties", {})
    return found


def _resolved(schema: Schema, root: Schema) -> Schema:
    if "$ref" not in schema:
        return schema
    found: Schema = root["$defs"][schema["$ref"].rpartition("/")[2]]
    return found
