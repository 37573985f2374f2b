"""Uses the REST API by Pulp's generated bindings: bindings.py URL GROUP GROUP.

The user admin has the password password. The tasks of the first group are final, those of the second one are not.
"""

import contextlib
import datetime
import json
import sys
import time
import traceback
import typing
import urllib.request
from base64 import b64encode

from pulpcore.client import pulpcore as bindings

URL, DONE_GROUP, BUSY_GROUP = sys.argv[1:]
HELPERS = "pulpcore.app.tasks.test."
NOWHERE = "/pulp/api/v3/tasks/00000000-0000-7000-8000-000000000000/"
FINAL = ["completed", "failed", "canceled", "skipped"]


class Client:
    """The bindings for one user."""

    def __init__(self, username, password="password"):
        config = bindings.Configuration(host=URL, username=username, password=password)
        config.safe_chars_for_path_param = "/"
        api = bindings.ApiClient(config)
        self.tasks = bindings.TasksApi(api)
        self.groups = bindings.TaskGroupsApi(api)
        self.schedules = bindings.TaskSchedulesApi(api)
        self.workers = bindings.WorkersApi(api)
        self.users = bindings.UsersApi(api)
        self.roles = bindings.UsersRolesApi(api)
        self.status = bindings.StatusApi(api)


def post(path, **body):
    """Calls what Pulp's bindings do not know."""
    request = urllib.request.Request(URL + path, json.dumps(body).encode(), {
        "Content-Type": "application/json",
        "Authorization": "Basic " + b64encode(b"admin:password").decode(),
    })
    with urllib.request.urlopen(request) as reply:
        return json.load(reply)


def dispatch(name, args=None, **options):
    return post("/pith/api/tasks/", name=HELPERS + name, args=args, **options)["task"]


@contextlib.contextmanager
def refused(status, text=""):
    """The block must be answered with an error."""
    try:
        yield
    except bindings.ApiException as e:
        assert e.status == status, f"{e.status} instead of {status}: {e.body}"
        assert text in e.body, f"{text!r} is not in {e.body}"
    else:
        raise AssertionError(f"{status} was expected")


def reaches(api, href, *states):
    deadline = time.monotonic() + 90
    while (task := api.tasks.read(href)).state not in states:
        assert time.monotonic() < deadline, f"{href} is {task.state}"
        time.sleep(0.1)
    return task


def same(got, want):
    assert got == want, f"{got!r} instead of {want!r}"


admin = Client("admin")


def test_every_operation_has_its_method():
    with urllib.request.urlopen(URL + "/pulp/api/v3/docs/api.json?bindings") as reply:
        document = json.load(reply)
    missing = []
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            tag = operation["tags"][0]
            if tag.startswith("Pith") or tag in ("Root", "Docs"):
                continue
            api = getattr(bindings, "".join(word for word in tag.replace("-", " ").replace(":", " ").split()) + "Api", None)
            call = getattr(api, operation["operationId"], None)
            if call is None:
                missing.append(f"{tag}: {operation['operationId']}")
                continue
            # What it takes and answers has the name of the class.
            known = {getattr(hint, "__name__", "") for hint in typing.get_type_hints(call).values()}
            schemas = [body["schema"] for part in [operation.get("requestBody", {}), *(operation["responses"][s] for s in operation["responses"] if s < "300")]
                       for kind, body in part.get("content", {}).items() if kind == "application/json"]
            for schema in schemas:
                if schema["$ref"].rsplit("/", 1)[1] not in known:
                    missing.append(f"{tag}: {operation['operationId']} has {schema}, not one of {known}")
    same(missing, [])


def test_status():
    status = admin.status.status_read()
    same([(v.component, v.package) for v in status.versions], [("core", "pulpcore")])
    same(sorted(w.name for w in status.online_workers), ["one@test", "two@test"])
    assert status.database_connection.connected and not status.redis_connection.connected and not status.domain_enabled
    assert isinstance(status.online_workers[0].last_heartbeat, datetime.datetime)


def test_tasks():
    begin = datetime.datetime.now(datetime.timezone.utc)
    href = dispatch("sleep", {"interval": 0}, exclusive_resources=["mine"], shared_resources=["ours"])
    task = reaches(admin, href, *FINAL)
    same((task.state, task.name, task.error, task.result, task.worker), ("completed", HELPERS + "sleep", None, None, None))
    for at in (task.pulp_created, task.unblocked_at, task.started_at, task.finished_at):
        assert isinstance(at, datetime.datetime) and at.utcoffset() == datetime.timedelta(0) and at >= begin - datetime.timedelta(minutes=1)
    same(task.created_by, "/pulp/api/v3/users/1/")
    same(task.reserved_resources_record[:2], ["mine", "shared:ours"])
    same((task.progress_reports, task.created_resources, task.child_tasks, task.parent_task, task.task_group), ([], [], [], None, None))
    assert task.prn.startswith("prn:core.task:") and task.pulp_href == href

    failed = reaches(admin, dispatch("failing_task", {"error_message": "as told"}), *FINAL)
    same((failed.state, failed.error["description"]), ("failed", "as told"))

    def found(**filters):
        page = admin.tasks.list(**filters)
        assert page.count >= len(page.results)
        return [t.pulp_href for t in page.results]

    assert href in found(state="completed") and href not in found(state="failed") and href in found(state__ne="failed")
    assert href in found(state__in=["completed", "failed"])
    assert href in found(name=HELPERS + "sleep") and href not in found(name__ne=HELPERS + "sleep")
    assert href in found(name__contains="slee") and href in found(name__in=[HELPERS + "sleep", "other"])
    same(found(logging_cid=task.logging_cid), [href])
    same(found(reserved_resources="mine"), [href])
    same(found(reserved_resources__in=["mine", "ours"]), [href])
    same(found(exclusive_resources="ours"), [])
    same(found(shared_resources="ours"), [href])
    assert href in found(started_at__gte=task.started_at) and href not in found(started_at__gt=task.started_at)
    assert href in found(started_at=task.started_at) and href not in found(finished_at__lt=task.finished_at)
    assert href in found(finished_at__range=[task.started_at, task.finished_at]) and href not in found(started_at__isnull=True)
    assert href in found(pulp_href__in=[href]) and found(prn__in=[task.prn]) == [href]
    same(found(parent_task=href), [])
    same(found(q="name=" + HELPERS + "sleep AND state=completed AND exclusive_resources=mine"), [href])
    page = admin.tasks.list(limit=1, offset=1, ordering=["pulp_created"])
    same(len(page.results), 1)
    assert page.next.startswith(URL) and page.previous.startswith(URL)


def test_errors_have_their_status():
    for do in (admin.tasks.read, admin.tasks.delete, lambda href: admin.tasks.tasks_cancel(href, {"state": "canceled"})):
        with refused(404, "No Task matches the given query."):
            do(NOWHERE)
    with refused(400, "URI not valid"):
        admin.tasks.list(created_resources="/nowhere/")
    with refused(401, "Invalid username/password."):
        Client("admin", "wrong").tasks.list()
    with refused(401):
        Client("nobody").tasks.list()


def test_cancel_and_delete():
    running = dispatch("sleep", {"interval": 600}, exclusive_resources=["busy"])
    waiting = dispatch("sleep", {"interval": 0}, exclusive_resources=["busy"])
    task = reaches(admin, running, "running")
    assert task.started_at is not None and task.finished_at is None
    same(admin.tasks.read(waiting).state, "waiting")
    for href in (running, waiting):
        with refused(409):
            admin.tasks.delete(href)
        assert admin.tasks.tasks_cancel(href, {"state": "canceled"}).state in ("canceling", "canceled")
    same(reaches(admin, waiting, "canceled").started_at, None)
    assert reaches(admin, running, "canceled").finished_at is not None
    same(admin.tasks.tasks_cancel(running, {"state": "canceled"}).state, "canceled")
    final = reaches(admin, dispatch("dummy_task"), "completed").pulp_href
    with refused(409, '"state":"completed"'):
        admin.tasks.tasks_cancel(final, {"state": "canceled"})
    same(admin.tasks.delete(final), None)
    with refused(404):
        admin.tasks.read(final)


def test_purge_and_profiles():
    failed = reaches(admin, dispatch("failing_task"), "failed").pulp_href
    kept = reaches(admin, dispatch("dummy_task"), "completed").pulp_href
    long_ago, soon = (datetime.datetime(year, 1, 1, tzinfo=datetime.timezone.utc) for year in (2020, 2999))
    reaches(admin, admin.tasks.purge(bindings.Purge(finished_before=long_ago, states=["failed"])).task, "completed")
    admin.tasks.read(failed)
    started = admin.tasks.purge(bindings.Purge(finished_before=soon, states=["failed"]), x_task_diagnostics=["memory"])
    task = reaches(admin, started.task, "completed")
    assert {"purge.tasks.total", "purge.tasks.key.core.Task"} <= {r.code for r in task.progress_reports}, task.progress_reports
    with refused(404):
        admin.tasks.read(failed)
    admin.tasks.read(kept)
    urls = admin.tasks.profile_artifacts(task.pulp_href).urls
    same(list(urls), ["memory_profile"])
    with urllib.request.urlopen(urls["memory_profile"]) as reply:
        assert reply.read().startswith(b"# seconds")
    same(admin.tasks.profile_artifacts(kept).urls, {})


def test_groups():
    groups = admin.groups.list()
    same(groups.count, 2)
    same({g.pulp_href for g in groups.results}, {DONE_GROUP, BUSY_GROUP})
    done = admin.groups.read(DONE_GROUP)
    same((done.description, done.completed, done.all_tasks_dispatched, len(done.tasks)), ("of a test", 2, True, 2))
    assert {t.state for t in done.tasks} == {"completed"} and isinstance(done.tasks[0].pulp_created, datetime.datetime)
    busy = admin.groups.task_groups_cancel(BUSY_GROUP, {"state": "canceled"})
    same(busy.waiting + busy.running, 0)
    for task in busy.tasks:
        assert task.state in FINAL + ["canceling"]
        reaches(admin, task.pulp_href, *FINAL)
    with refused(404, "No TaskGroup matches"):
        admin.groups.read(NOWHERE.replace("tasks", "task-groups"))


def test_workers():
    online = admin.workers.list(online=True)
    same(sorted(w.name for w in online.results), ["one@test", "two@test"])
    same(admin.workers.list(missing=True).count, 0)
    same(admin.workers.list(name__startswith="one", last_heartbeat__lte=datetime.datetime(2999, 1, 1)).count, 1)
    worker = admin.workers.read(online.results[0].pulp_href)
    assert worker.prn.startswith("prn:core.appstatus:") and worker.versions["core"] and isinstance(worker.last_heartbeat, datetime.datetime)


def test_users():
    user = admin.users.create({"username": "alice", "password": "secret"})
    same((user.username, user.is_active, user.is_staff, user.email, user.groups), ("alice", True, False, "", []))
    same(user.pulp_href, f"/pulp/api/v3/users/{user.id}/")
    with refused(400, '"username":["This field must be unique."]'):
        admin.users.create({"username": "alice"})
    alice = Client("alice", "secret")
    href = reaches(admin, dispatch("dummy_task"), "completed").pulp_href
    same(alice.tasks.list().count, 0)
    same(alice.groups.list().count, 0)
    with refused(404):
        alice.tasks.read(href)
    with refused(403, "You do not have permission"):
        alice.users.list()
    with refused(404):
        alice.groups.read(DONE_GROUP)

    with refused(400, "does not exist"):
        admin.roles.create(user.pulp_href, {"role": "core.nothing", "content_object": None, "domain": None})
    viewer = admin.roles.create(user.pulp_href, {"role": "core.task_viewer", "content_object": None, "domain": None})
    same((viewer.role, viewer.content_object, viewer.permissions), ("core.task_viewer", None, ["core.view_task"]))
    same(alice.tasks.read(href).state, "completed")
    same(alice.groups.list().count, 2)
    with refused(403):
        alice.tasks.delete(href)
    with refused(403):
        alice.tasks.profile_artifacts(href)
    with refused(403):
        alice.groups.task_groups_cancel(DONE_GROUP, {"state": "canceled"})
    with refused(403):
        alice.tasks.add_role(href, {"role": "core.task_owner", "users": ["alice"]})
    same(alice.tasks.my_permissions(href).permissions, ["core.view_task"])
    admin.roles.delete(viewer.pulp_href)
    with refused(404):
        alice.tasks.read(href)

    admin.tasks.add_role(href, {"role": "core.task_owner", "users": ["alice"]})
    owner = admin.roles.list(user.pulp_href).results[0]
    same((owner.role, owner.content_object, owner.content_object_prn), ("core.task_owner", href, "prn:core.task:" + href.split("/")[-2]))
    same(admin.roles.read(owner.pulp_href).role, "core.task_owner")
    same(admin.roles.list(user.pulp_href, role="core.task_viewer").count, 0)
    same([r.role for r in admin.tasks.list_roles(href).roles if "alice" in r.users], ["core.task_owner"])
    same(alice.tasks.list().count, 1)
    same(alice.tasks.profile_artifacts(href).urls, {})
    mine = reaches(alice, alice.tasks.purge(bindings.Purge()).task, "completed")
    same(mine.created_by, user.pulp_href)
    same({(r.role, r.content_object) for r in admin.roles.list(user.pulp_href).results},
         {("core.task_owner", href), ("core.task_owner", mine.pulp_href), ("core.task_user_dispatcher", mine.pulp_href)})
    admin.tasks.remove_role(href, {"role": "core.task_owner", "users": ["alice"]})
    same([t.pulp_href for t in alice.tasks.list().results], [mine.pulp_href])

    same(admin.users.partial_update(user.pulp_href, {"first_name": "Alice"}).first_name, "Alice")
    same(admin.users.update(user.pulp_href, {"username": "alice", "is_active": False}).is_active, False)
    with refused(401):
        alice.tasks.list()
    same([u.username for u in admin.users.list(username__icontains="ALI").results], ["alice"])
    same(admin.users.delete(user.pulp_href), None)
    with refused(404, "No User matches"):
        admin.users.read(user.pulp_href)


def test_schedules():
    post("/pith/api/task-schedules/", name="nightly", task_name=HELPERS + "dummy_task", dispatch_interval="1 02:00:00", next_dispatch="2999-01-01T00:00:00Z")
    page = admin.schedules.list(name="nightly")
    same(page.count, 1)
    schedule = admin.schedules.read(page.results[0].pulp_href)
    same((schedule.name, schedule.task_name, schedule.dispatch_interval, schedule.last_task), ("nightly", HELPERS + "dummy_task", "1 02:00:00", None))
    same(schedule.next_dispatch, datetime.datetime(2999, 1, 1, tzinfo=datetime.timezone.utc))
    same(admin.schedules.list(task_name__contains="nothing").count, 0)
    same(admin.schedules.my_permissions(schedule.pulp_href).permissions, ["core.manage_roles_taskschedule", "core.view_taskschedule"])
    with refused(404, "No TaskSchedule matches"):
        admin.schedules.read(NOWHERE.replace("tasks", "task-schedules"))


failed = 0
for name, test in list(globals().items()):
    if name.startswith("test_"):
        try:
            test()
            print(name, "holds")
        except Exception:
            failed += 1
            print(name, "does not hold")
            traceback.print_exc()
sys.exit(failed > 0)
