"""The configuration shown to others: the JSON Schema of its file, and a loaded one written as YAML.

Laws:
    * Keys, types, bounds and descriptions come from the models of :mod:`fastagi_pool.config` and
      :mod:`fastagi_pool.routeconfig`; only the key ``include``, which belongs to no model, is described here.
    * The schema is made here and not by pydantic, whose output differs from release to release: the
      generated files must depend on this project alone.
    * :func:`effective` shows no password.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from enum import Enum
from types import NoneType, UnionType
from typing import Annotated, Any, Final, TypeAlias, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, WithJsonSchema
from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

from fastagi_pool.config import Config, Database, Limits
from fastagi_pool.laneconfig import Journal, Lane, Quarantine
from fastagi_pool.routeconfig import Process, Route, Upstream, UpstreamServer
from fastagi_pool.serviceconfig import Http, Log, Rotation, Slow
from fastagi_pool.values import VARIABLE_SCHEMA
from fastagi_pool.yamlfile import Bare, bare_value

# -- The schema of the file -------------------------------------------------------------------------------

#: A JSON Schema, or a part of one.
Schema: TypeAlias = dict[str, Any]

#: The mappings inside the file, each described once.
_SECTIONS: Final = (
    Database,
    Http,
    Journal,
    Lane,
    Limits,
    Log,
    Process,
    Quarantine,
    Rotation,
    Route,
    Slow,
    Upstream,
    UpstreamServer,
)
#: What may stand for a value of each plain type; bounds belong to the first.
_PLAIN: Final[Mapping[type, Sequence[Schema]]] = {
    NoneType: [{"type": "null"}],
    str: [{"type": "string"}],
    bool: [{"type": "boolean"}, {"enum": ["yes", "no", "on", "off"]}, VARIABLE_SCHEMA],
    int: [{"type": "integer"}, VARIABLE_SCHEMA],
    float: [{"type": "number"}, VARIABLE_SCHEMA],
}
#: The bounds of a field: JSON Schema's word, and the attribute of what ``Field`` keeps of it.
_BOUNDS: Final = {"minimum": "ge", "maximum": "le", "maxLength": "max_length"}


def json_schema() -> Schema:
    """Describe the file for editors, as JSON Schema 2020-12."""
    names = {"type": "string", "title": "file or glob"}
    include = {
        "description": "Files to read after this one, relative to it; globs such as `conf.d/*.yaml` are "
        "sorted. Only in the main file.",
        "anyOf": [names, {"type": "array", "items": names}],
    }
    whole = _mapping(Config)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **whole,
        "title": "fastagi_pool configuration",
        "properties": {"include": include, **whole["properties"]},
        "$defs": {model.__name__: _mapping(model) for model in _SECTIONS},
    }


def _mapping(model: type[BaseModel]) -> Schema:
    fields = {info.alias or name: info for name, info in model.model_fields.items()}
    schema: Schema = {
        "title": model.__name__,
        "description": model.__doc__,
        "type": "object",
        "properties": {key: _key(info) for key, info in fields.items()},
        "additionalProperties": False,
    }
    required = [key for key, info in fields.items() if info.is_required()]
    return {**schema, "required": required} if required else schema


def _key(info: FieldInfo) -> Schema:
    schema = {"description": info.description, **_value(info.annotation, info.metadata)}
    # A default that a factory makes is a mapping, whose keys have their own, or is told in the description.
    if not info.is_required() and info.default_factory is None:
        schema["default"] = to_jsonable_python(info.default)
    return schema


def _value(annotation: Any, marks: Sequence[object]) -> Schema:
    """Describe what may stand in the file for a value of a type.

    Args:
        annotation: The type, without the outermost ``Annotated``.
        marks: What that ``Annotated`` says about it.
    """
    for mark in marks:
        if isinstance(mark, WithJsonSchema) and mark.json_schema is not None:
            return mark.json_schema
    inner = get_args(annotation)
    match get_origin(annotation):
        case None:
            return _plain(annotation, marks)
        case origin if origin is Annotated:
            return _value(inner[0], inner[1:])
        case origin if origin in (Union, UnionType):
            # Bounds are those of the numbers among the choices; None has none.
            return {"anyOf": [_value(choice, marks if choice is not NoneType else ()) for choice in inner]}
        case origin if origin is tuple:
            return {"type": "array", "items": _value(inner[0], ())}
        case _:
            values = True if inner[1] is object else _value(inner[1], ())
            return {"type": "object", "additionalProperties": values}


def _plain(kind: type, marks: Sequence[object]) -> Schema:
    """Describe a value of a type without parameters."""
    if issubclass(kind, BaseModel):
        return {"$ref": f"#/$defs/{kind.__name__}"}
    if issubclass(kind, Enum):
        return {"anyOf": [{"enum": [member.value for member in kind]}, VARIABLE_SCHEMA]}
    first, *others = _PLAIN[kind]
    bounds = {
        word: getattr(mark, attribute)
        for word, attribute in _BOUNDS.items()
        for mark in marks
        if hasattr(mark, attribute)
    }
    schema = {**first, **bounds}
    return {"anyOf": [schema, *others]} if others else schema


# -- A configuration as YAML ------------------------------------------------------------------------------

_MASK: Final = "***"
_SECRET_KEY = re.compile(r"passw|passphrase|secret|token|api_?key|credential", re.IGNORECASE)
_URL_PASSWORD = re.compile(r"(?<=://)(?P<user>[^:/@\s]*):.*@", re.DOTALL)
_QUERY_SECRET = re.compile(
    r"(?P<name>[?&][^=&]*(?:passw|passphrase|secret|token)[^=&]*=)[^&]*", re.IGNORECASE
)

_DOUBTFUL_DOLLAR = re.compile(r"\$(?=[${])")


def effective(config: Config) -> str:
    """Write the configuration with every default, as YAML that can be loaded again.

    Passwords become ``***``: the key ``password``, passwords in URLs, and every option and environment
    variable whose name speaks of a secret. Of a route only the keys are shown that mean something to it.

    Args:
        config: The configuration.
    """
    plain = config.model_dump(mode="json", by_alias=True, exclude_none=True)
    for database in plain["databases"].values():
        database["password"] = _MASK if database["password"] else ""
    for route, shown in zip(config.routes, plain["routes"], strict=True):
        # Taken anew, because pydantic would leave out options that are null.
        shown["options"] = _masked_options(route.options)
        if route.process:
            shown["process"]["environment"] = _masked_options(route.process.environment)
        for key, _ in route.foreign_keys():
            shown.pop(key, None)
    text = yaml.dump(_literal(plain), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)
    return str(text)


def _masked_options(value: object) -> object:
    if isinstance(value, Mapping):
        return {
            key: _MASK if _SECRET_KEY.search(key) and item else _masked_options(item)
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [_masked_options(item) for item in value]
    return value


def _literal(value: object) -> object:
    """Make text safe to show and to read again: no URL's password, and ``$`` doubled where it means more."""
    if isinstance(value, Mapping):
        return {key: _literal(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_literal(item) for item in value]
    if not isinstance(value, str):
        return value
    masked = _QUERY_SECRET.sub(rf"\g<name>{_MASK}", _URL_PASSWORD.sub(rf"\g<user>:{_MASK}@", value))
    return _DOUBTFUL_DOLLAR.sub("$$", masked)


class _Dumper(yaml.SafeDumper):
    """PyYAML's writer for people."""

    def ignore_aliases(self, data: object) -> bool:
        """Write equal values out each time."""
        return True


def _represent_text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    """Write a text, with quotes if it would not be read again as the same text without."""
    try:
        unclear = bare_value(Bare(text)) != text or not text.isprintable()
    except ValueError:
        unclear = True
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"' if unclear else None)


_Dumper.add_representer(str, _represent_text)
