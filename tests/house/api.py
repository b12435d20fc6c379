"""The public interface as a file, so that a change that breaks somebody's script is a change that somebody sees.

python -m tests.house.api        writes tests/house/api.json anew, after a change that is meant
"""

import dataclasses
import inspect
import json
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("api.json")
COMMAND = "python -m tests.house.api"
Parameters = dict[str, str]


def surface(package: Any) -> dict[str, Any]:
    """Every public name: how it is called, and a class's public members."""
    return {name: described(getattr(package, name)) for name in sorted(package.__all__)}


def described(thing: Any) -> dict[str, Any]:
    """A function's or class's parameters, and what a class has for its users."""
    if not inspect.isclass(thing):
        return {"call": parameters(thing), "members": {}}
    ours = [base for base in thing.__mro__ if base.__module__.startswith("lcalens")]
    members: dict[str, Parameters | None] = {}
    for base in reversed(ours):
        for name, value in vars(base).items():
            if not name.startswith("_"):
                value = value.__func__ if isinstance(value, classmethod | staticmethod) else value
                members[name] = parameters(value) if inspect.isfunction(value) else None
    if dataclasses.is_dataclass(thing):
        members |= {field.name: None for field in dataclasses.fields(thing) if not field.name.startswith("_")}
    return {"call": parameters(thing) if ours else {}, "members": dict(sorted(members.items()))}


def parameters(function: Any) -> Parameters:
    """Each parameter: whether it may be given by place, and whether it must be given."""
    found = {}
    try:
        signature = inspect.signature(function)
    except ValueError:  # of a class that only inherits from one written in C
        return {}
    for name, parameter in signature.parameters.items():
        if name == "self" or name.startswith("_"):
            continue
        kind = {
            parameter.KEYWORD_ONLY: "keyword",
            parameter.VAR_KEYWORD: "any keywords",
            parameter.VAR_POSITIONAL: "any number",
        }.get(parameter.kind, "positional")
        required = parameter.default is parameter.empty and kind in ("keyword", "positional")
        found[name] = f"{kind}, required" if required else kind
    return found


def broken(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What worked before and does not now, in words."""
    gone = [f"{name} is gone" for name in before if name not in now]
    for name in before.keys() & now.keys():
        gone += changed(name, before[name]["call"], now[name]["call"])
        for member, called in before[name]["members"].items():
            if member not in now[name]["members"]:
                gone.append(f"{name}.{member} is gone")
            elif called is not None and now[name]["members"][member] is not None:
                gone += changed(f"{name}.{member}", called, now[name]["members"][member])
    return sorted(gone)


def changed(name: str, before: Parameters, now: Parameters) -> list[str]:
    """What of a call that worked before does not now."""
    told = []
    for parameter, kind in before.items():
        if parameter not in now:
            told.append(f"{name}({parameter}) is gone")
        elif "required" in now[parameter] and "required" not in kind:
            told.append(f"{name}({parameter}) must be given now")
        elif kind.startswith("positional") and not now[parameter].startswith("positional"):
            told.append(f"{name}({parameter}) is no longer taken by place")
    told += [f"{name}({new}) is new and must be given" for new in now if new not in before and "required" in now[new]]
    places = [parameter for parameter, kind in now.items() if kind.startswith("positional") and parameter in before]
    if places != [parameter for parameter in before if parameter in places]:
        told.append(f"{name}: its parameters stand in another order")
    return told


if __name__ == "__main__":
    import lcalens

    FILE.write_text(json.dumps(surface(lcalens), indent=1, sort_keys=False) + "\n", encoding="utf-8")
    print(f"{FILE.name}: {len(lcalens.__all__)} names")
