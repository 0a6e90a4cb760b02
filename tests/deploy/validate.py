"""Holds objects to the schemas of Kubernetes that the package kubernetes-validate brings, strictly: a field that a version does not have is wrong.

Reads {"1.28": [object, ...], ...} and prints what is wrong; the package's own reader opens the schemas anew for each object, which takes minutes.
"""

import json
import sys
from functools import cache
from pathlib import Path

import jsonschema
import kubernetes_validate
import referencing

SCHEMAS = Path(kubernetes_validate.__file__).parent / "kubernetes-json-schema"


@cache
def registry(version):
    definitions = json.loads((SCHEMAS / f"v{version}.0-local-strict" / "_definitions.json").read_text())
    return definitions


@cache
def validator(version, api_version, kind):
    group, _, name = api_version.rpartition("/")
    stem = "-".join(part for part in (kind.lower(), group.split(".")[0], name) if part)
    path = SCHEMAS / f"v{version}.0-local-strict" / f"{stem}.json"
    if not path.exists():
        return None
    schema = json.loads(path.read_text())
    resources = referencing.Resource.from_contents(registry(version)) @ (
        referencing.Resource.from_contents(schema) @ referencing.Registry()
    )
    return jsonschema.Draft202012Validator(schema, registry=resources)


def main():
    checked = wrong = 0
    for version, objects in json.load(sys.stdin).items():
        for obj in objects:
            name = f"{version}: {obj['kind']} {obj['metadata']['name']}"
            checked += 1
            against = validator(version, obj["apiVersion"], obj["kind"])
            errors = ["no such kind"] if against is None else [
                f"{'.'.join(map(str, error.absolute_path))}: {error.message[:300]}" for error in against.iter_errors(obj)
            ]
            wrong += bool(errors)
            for error in errors:
                print(f"{name}: {error}")
    print(f"{checked} objects checked, {wrong} wrong")
    sys.exit(1 if wrong else 0)


main()
