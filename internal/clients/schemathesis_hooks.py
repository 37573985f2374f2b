"""Points every other request at an object that is there, and none that changes something at the user who asks."""

import json
import os
import zlib

import schemathesis

ADMIN = 1
HELPER = "pulpcore.app.tasks.test.dummy_task"
KEYS = json.loads(os.environ["PITH_KEYS"])  # by the name of the object


def there(name):
    """The keys that a parameter of a path may have."""
    return KEYS.get(name.removeprefix("pith_").removesuffix("_pk").replace("profile", "task"), [])


def is_admin(key):
    try:
        return int(key) == ADMIN
    except (TypeError, ValueError):
        return False


@schemathesis.hook
def before_call(context, case, kwargs):
    # The same request is always treated alike, so that it can be played again.
    chance = zlib.crc32(repr((case.method, case.path, case.path_parameters, case.query, case.body)).encode())
    path, body = case.path_parameters, case.body
    if chance % 2:
        for name in path or {}:
            if keys := there(name):
                path[name] = keys[chance // 2 % len(keys)]
        for name in ("name", "task_name"):
            if "/pith/api/" in case.path and isinstance(body, dict) and isinstance(body.get(name), str) and body.get("task_name", body.get("name")) == body[name]:
                body[name] = HELPER
    if case.method.upper() in ("PUT", "PATCH", "DELETE") and is_admin((path or {}).get("id")):
        path["id"] = "2"
