package api_test

import (
	"maps"
	"net/http"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/pithworks/pith/tasking"
)

// newTaskScene makes tasks in all states, with all that filters ask for. Each task's correlation id is its name here. It
// answers what to put into queries: of each task NAME its href, NAME.url, NAME.id, NAME.prn, and the times NAME.at and
// NAME.free at which it was created and unblocked.
func newTaskScene(h *harness) map[string]string {
	h.t.Helper()
	values, ids := map[string]string{"domain": tasking.Domain}, map[string]uuid.UUID{}
	group, groupHref := h.newGroup("")
	values["group"], values["group.prn"] = groupHref, "prn:core.taskgroup:"+group.String()
	dispatch := func(name, kind string, o tasking.Options) {
		o.CorrelationID = name
		id, href := h.dispatch(kind, map[string]any{"interval": 0}, o)
		ids[name] = id
		created, _ := h.object(href)["pulp_created"].(string)
		free, _ := h.object(href)["unblocked_at"].(string)
		maps.Copy(values, map[string]string{
			name: href, name + ".url": h.http.URL + href, name + ".id": id.String(), name + ".prn": "prn:core.task:" + id.String(),
			name + ".at": created, name + ".free": free,
		})
	}
	worker := h.register("a worker")
	dispatch("done", "dummy_task", tasking.Options{})
	dispatch("bad", "failing_task", tasking.Options{})
	h.claim(worker)
	h.exec("INSERT INTO created_resource VALUES ($1, 0, $2)", ids["done"], values["bad.prn"])
	h.finish(worker, ids["done"], tasking.Completed, "", "")
	h.finish(worker, ids["bad"], tasking.Failed, "", `{"description": "no luck"}`)
	dispatch("gone", "dummy_task", tasking.Options{Exclusive: []string{"apple"}})
	h.cancel(ids["gone"])
	dispatch("parent", "sleep", tasking.Options{Group: &group})
	dispatch("child", "sleep", tasking.Options{})
	dispatch("void", "dummy_task", tasking.Options{})
	h.claim(worker)
	h.cancel(ids["child"])
	h.finish(worker, ids["void"], tasking.Completed, "", "")
	dispatch("idle", "dummy_task", tasking.Options{Exclusive: []string{values["done.prn"]}, Shared: []string{"pear"}})
	dispatch("late", "dummy_task", tasking.Options{Exclusive: []string{"pear"}})
	h.exec("UPDATE task SET parent_task = $2 WHERE id = $1", ids["child"], ids["parent"])
	h.exec("UPDATE task SET state = 'skipped' WHERE id = $1", ids["void"])
	for name, times := range map[string][]string{ // started and finished
		"done": {"2024-01-01", "2024-02-01"}, "bad": {"2024-01-02", "2024-02-02"}, "void": {"2024-01-05", "2024-02-04"},
		"parent": {"2024-01-03", ""}, "child": {"2024-01-04", ""}, "gone": {"", "2024-02-03"},
	} {
		h.exec(`UPDATE task SET started_at = (nullif($2::text, '') || 'T00:00Z')::timestamptz, finished_at = (nullif($3::text, '') || 'T00:00Z')::timestamptz
			WHERE id = $1`, ids[name], times[0], times[1])
	}
	return values
}

func TestTasksAreFiltered(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	values := newTaskScene(h)
	const all = "done bad gone parent child void idle late"
	without := func(names ...string) string {
		list := strings.Fields(all)
		for _, name := range names {
			for i := range list {
				if list[i] == name {
					list[i] = ""
				}
			}
		}
		return strings.Join(list, " ")
	}
	h.finds("tasks/", "logging_cid", values, []asked{
		{"", all},
		{"state=waiting", "idle late"},
		{"state=running", "parent"},
		{"state=canceling", "child"},
		{"state=completed", "done"},
		{"state=failed", "bad"},
		{"state=canceled", "gone"},
		{"state=skipped", "void"},
		{"state=", all},
		{"state=completed&state=waiting", "idle late"},
		{"state__ne=waiting", without("idle", "late")},
		{"state__ne=skipped", without("void")},
		{"state__in=waiting,running", "idle late parent"},
		{"state__in=failed,nothing,", "bad"},
		{"state__in=nothing", ""},
		{"state__in=waiting,skipped,running,completed,failed,canceled,canceling", all},
		{"name=" + testModule + "sleep", "parent child"},
		{"name=sleep", ""},
		{"name__in=" + testModule + "failing_task,x", "bad"},
		{"name__contains=failing", "bad"},
		{"name__contains=FAILING", ""},
		{"name__contains=%", ""},
		{"name__ne=" + testModule + "dummy_task", "bad parent child"},
		{"logging_cid=done", "done"},
		{"logging_cid__contains=d", "done bad child void idle"},
		{"pulp_created={child.at}", "child"},
		{"pulp_created__lt={child.at}", "done bad gone parent"},
		{"pulp_created__lte={child.at}", "done bad gone parent child"},
		{"pulp_created__gt={child.at}", "void idle late"},
		{"pulp_created__gte={child.at}", "child void idle late"},
		{"pulp_created__range={bad.at},{gone.at}", "bad gone"},
		{"pulp_created__range={gone.at},{bad.at}", ""},
		{"pulp_created__isnull=true", ""},
		{"pulp_created__isnull=false", all},
		{"unblocked_at={idle.free}", "idle"},
		{"unblocked_at__lt={bad.free}", "done"},
		{"unblocked_at__lte={bad.free}", "done bad"},
		{"unblocked_at__gt={void.free}", "idle"},
		{"unblocked_at__gte={void.free}", "void idle"},
		{"unblocked_at__range={bad.free},{gone.free}", "bad gone"},
		{"unblocked_at__isnull=1", "late"},
		{"unblocked_at__isnull=False", without("late")},
		{"started_at=2024-01-03", "parent"},
		{"started_at=2024-01-03T05:45:00.000000+05:45", "parent"},
		{"started_at=2024-01-03 01:00 01:00", "parent"},
		{"started_at=2024-01-03T00:00:01Z", ""},
		{"started_at__lt=2024-01-03T00:00Z", "done bad"},
		{"started_at__lte=2024-01-03T00:00Z", "done bad parent"},
		{"started_at__gt=2024-01-03T00:00Z", "child void"},
		{"started_at__gte=2024-01-03T00:00Z", "parent child void"},
		{"started_at__range=2024-01-02,2024-01-03", "bad parent"},
		{"started_at__isnull=true", "gone idle late"},
		{"started_at__isnull=false", without("gone", "idle", "late")},
		{"finished_at=2024-02-03", "gone"},
		{"finished_at__lt=2024-02-03", "done bad"},
		{"finished_at__lte=2024-02-03", "done bad gone"},
		{"finished_at__gt=2024-02-03", "void"},
		{"finished_at__gte=2024-02-03", "gone void"},
		{"finished_at__range=2024-02-02,2024-02-03", "bad gone"},
		{"finished_at__isnull=true", "parent child idle late"},
		{"finished_at__isnull=false", "done bad gone void"},
		{"parent_task={parent}", "child"},
		{"parent_task={parent.url}", "child"},
		{"parent_task={parent.prn}", "child"},
		{"parent_task=https://pulp.example" + root + "tasks/" + nowhere + "/", ""},
		{"parent_task={done}", ""},
		{"parent_task=" + root + "tasks/", "child"},
		{"parent_task=null", without("child")},
		{"child_tasks={child}", "parent"},
		{"child_tasks={child.url}", "parent"},
		{"child_tasks={child.prn}", "parent"},
		{"child_tasks={parent}", ""},
		{"child_tasks=null", ""},
		{"task_group={group}", "parent"},
		{"task_group={group.prn}", "parent"},
		{"task_group=" + root + "task-groups/" + nowhere + "/", ""},
		{"task_group=null", without("parent")},
		{"worker=anything", ""},
		{"worker=" + root + "workers/" + nowhere + "/", ""},
		{"worker__in=a,b", ""},
		{"created_resources={bad}", "done"},
		{"created_resources={bad.url}", "done"},
		{"created_resources={bad.prn}", "done"},
		{"created_resources={done}", ""},
		{"reserved_resources=apple", "gone"},
		{"reserved_resources=pear", "idle late"},
		{"reserved_resources={done}", "idle"},
		{"reserved_resources={done.url}", "idle"},
		{"reserved_resources={done.prn}", "idle"},
		{"reserved_resources={domain}", all},
		{"reserved_resources={late}", ""},
		{"reserved_resources=/nowhere/", ""},
		{"reserved_resources__in=pear", "idle late"},
		{"reserved_resources__in=pear,{done}", "idle"},
		{"reserved_resources__in=pear,apple", ""},
		{"exclusive_resources=pear", "late"},
		{"exclusive_resources={done}", "idle"},
		{"exclusive_resources=nothing", ""},
		{"exclusive_resources__in=pear", "late"},
		{"exclusive_resources__in=pear,{done.prn}", ""},
		{"shared_resources=pear", "idle"},
		{"shared_resources=apple", ""},
		{"shared_resources={domain}", all},
		{"shared_resources__in={domain},pear", "idle"},
		{"reserved_resources=pear&exclusive_resources=pear&state=waiting", "late"},
		{"pulp_id__in={done.id},{bad.id}", "done bad"},
		{"pulp_id__in={done.id}," + nowhere, "done"},
		{"pulp_id__in=", ""},
		{"pulp_href__in={done},{bad.url}", "done bad"},
		{"pulp_href__in=", ""},
		{"prn__in={done.prn},{late}", "done late"},
		{"state__in=waiting,running&name__contains=sleep", "parent"},
		{"q=state=waiting", "idle late"},
		{"q=", all},
		{"q=name=\"\"", all},
		{"q=state=running OR state=failed", "parent bad"},
		{"q=NOT state=waiting", without("idle", "late")},
		{"q=NOT finished_at__lt=2024-02-03", without("done", "bad")}, // also where it is null
		{"q=NOT (state=waiting OR state=running)", without("idle", "late", "parent")},
		{"q=name__contains=sleep AND state=running", "parent"},
		{"q=state=failed OR name__contains=sleep AND state=running", "bad parent"},
		{"q=(state=failed OR name__contains=sleep) AND state=running", "parent"},
		{"q=(state=waiting and not logging_cid=late) or logging_cid='done'", "idle done"},
		{"q=parent_task={parent} OR parent_task=\"{parent.url}\"", "child"},
		{"q=state__in=\"waiting,running\" AND shared_resources=pear", "idle"},
		{"q=name__contains=a AND name__contains=a AND name__contains=a AND name__contains=a AND name__contains=a AND name__contains=i AND state=failed", "bad"},
		{"q=state=waiting&state=waiting&exclusive_resources=pear", "late"},
		{"q=state=waiting&state=running", ""},
	})
}

func TestFiltersFindOnlyWhatTheUserMaySee(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	values := newTaskScene(h)
	h.addUser("guest", false)
	for _, name := range []string{"done", "idle", "parent"} {
		h.want(post(values[name]+"add_role/", map[string]any{"users": []string{"guest"}, "role": "core.task_viewer"}), http.StatusCreated, nil)
	}
	for query, want := range map[string]string{
		"": "idle parent done", "state=waiting": "idle", "state__in=waiting,running": "idle parent", "exclusive_resources=pear": "",
		"q=NOT+state=completed+AND+shared_resources=pear": "idle", "ordering=logging_cid": "done idle parent", "state=completed": "done",
		"child_tasks=" + values["child"]: "parent", "parent_task=" + values["parent"]: "",
	} {
		for _, limit := range []string{"", "&limit=1"} {
			var page struct{ Count int }
			got := h.want(get("tasks/?"+query+limit).by("guest"), http.StatusOK, &page)
			list, found := strings.Fields(want), names(t, got.body, "logging_cid")
			if page.Count != len(list) || limit == "" && strings.Join(found, " ") != want || len(found) > 0 && found[0] != list[0] {
				t.Errorf("%s%s: %d, %v", query, limit, page.Count, found)
			}
		}
	}
}

// newWorkers registers the worker alpha, which is online and runs nothing, and beta, which is missing, and a process that is
// no worker. It answers what to put into queries.
func newWorkers(h *harness) map[string]string {
	h.t.Helper()
	values := map[string]string{}
	for _, name := range []string{"alpha@one", "beta@two"} {
		id := h.register(name)
		short, _, _ := strings.Cut(name, "@")
		maps.Copy(values, map[string]string{short: root + "workers/" + id.String() + "/", short + ".id": id.String(), short + ".prn": "prn:core.appstatus:" + id.String()})
	}
	h.registerAs("api", "gamma@one")
	h.exec("UPDATE app_status SET last_heartbeat = last_heartbeat - interval '2 hours' WHERE name = 'beta@two'")
	beat, _ := h.object(values["beta"])["last_heartbeat"].(string)
	values["beta.beat"] = beat
	return values
}

func TestWorkersAreFiltered(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	const alpha, beta = "alpha@one", "beta@two"
	const all = alpha + " " + beta
	h.finds("workers/", "name", newWorkers(h), []asked{
		{"", all},
		{"name=alpha@one", alpha},
		{"name=alpha", ""},
		{"name=gamma@one", ""},
		{"name__iexact=ALPHA@One", alpha},
		{"name__in=alpha@one,gamma@one", alpha},
		{"name__contains=a@", all},
		{"name__contains=A@", ""},
		{"name__icontains=A@O", alpha},
		{"name__startswith=be", beta},
		{"name__startswith=b_", ""},
		{"name__istartswith=BE", beta},
		{"name__regex=^a.*@", alpha},
		{"name__regex=^A", ""},
		{"name__iregex=TWO$", beta},
		{"online=true", alpha},
		{"online=False", beta},
		{"missing=true", beta},
		{"missing=0", alpha},
		{"missing=true&online=true", ""},
		{"last_heartbeat={beta.beat}", beta},
		{"last_heartbeat__lt={beta.beat}", ""},
		{"last_heartbeat__lte={beta.beat}", beta},
		{"last_heartbeat__gt={beta.beat}", alpha},
		{"last_heartbeat__gte={beta.beat}", all},
		{"last_heartbeat__range=2024-01-01,{beta.beat}", beta},
		{"last_heartbeat__isnull=true", ""},
		{"last_heartbeat__isnull=false", all},
		{"pulp_id__in={alpha.id}," + nowhere, alpha},
		{"pulp_href__in={alpha},{beta}", all},
		{"prn__in={beta.prn}", beta},
		{"q=NOT (online=true OR name=x)", beta},
	})
}

func TestSchedulesAreFiltered(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	values := map[string]string{}
	for _, name := range []string{"nightly", "daily"} {
		href := h.schedule(name)
		values[name], values[name+".id"], values[name+".prn"] = href, keyIn(href), "prn:core.taskschedule:"+keyIn(href)
	}
	h.exec("UPDATE task_schedule SET task_name = 'another' WHERE name = 'daily'")
	h.finds("task-schedules/", "name", values, []asked{
		{"", "nightly daily"},
		{"name=nightly", "nightly"},
		{"name=night", ""},
		{"name__contains=ly", "nightly daily"},
		{"name__contains=night", "nightly"},
		{"task_name=another", "daily"},
		{"task_name=other", ""},
		{"task_name__contains=dummy", "nightly"},
		{"pulp_id__in={daily.id}", "daily"},
		{"pulp_href__in={daily},{nightly}", "nightly daily"},
		{"prn__in={nightly.prn}", "nightly"},
		{"q=NOT name=daily", "nightly"},
	})
}

func TestScheduleHasPulpsFieldsInTheirOrder(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	_, task := h.dispatch("dummy_task", nil, tasking.Options{})
	fields := []string{"pulp_href", "prn", "pulp_created", "pulp_last_updated", "name", "task_name", "dispatch_interval", "next_dispatch", "last_task"}
	for every, want := range map[string]any{
		"1 day": "1 00:00:00", "90 minutes": "01:30:00", "00:00:01.000001": "00:00:01.000001", "400 days 23:59:59.5": "400 23:59:59.500000",
		"01:01:01.000001": "01:01:01.000001", "2 days 00:00:00.00003": "2 00:00:00.000030", "": nil,
	} {
		href := h.schedule("every " + every)
		h.exec("UPDATE task_schedule SET dispatch_interval = nullif($2::text, '')::interval, last_task = $3 WHERE id = $1", uuid.MustParse(keyIn(href)), every, uuid.MustParse(keyIn(task)))
		got := h.want(get(href), http.StatusOK, nil).body
		if list := members(t, got); strings.Join(list, " ") != strings.Join(fields, " ") {
			t.Errorf("fields %v", list)
		}
		o := h.object(href)
		next, _ := o["next_dispatch"].(string)
		if o["dispatch_interval"] != want || o["last_task"] != task || !times.MatchString(next) || o["task_name"] != testModule+"dummy_task" ||
			o["prn"] != "prn:core.taskschedule:"+keyIn(href) || o["pulp_href"] != href || o["pulp_last_updated"] != o["pulp_created"] {
			t.Errorf("%s: %s", every, got)
		}
	}
	h.exec("UPDATE task_schedule SET next_dispatch = NULL, last_task = NULL")
	var page struct{ Results []map[string]any }
	h.get("task-schedules/?limit=1", &page)
	if o := page.Results[0]; o["next_dispatch"] != nil || o["last_task"] != nil {
		t.Errorf("%v", o)
	}
}
