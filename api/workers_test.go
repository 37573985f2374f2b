package api_test

import (
	"encoding/json"
	"net/http"
	"testing"

	"github.com/google/go-cmp/cmp"

	appstatus "github.com/pithworks/pith/app_status"
	"github.com/pithworks/pith/internal/builtin"
	"github.com/pithworks/pith/tasking"
)

func TestWorkerTellsWhatItRuns(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	id := h.register("4711@host")
	worker := root + "workers/" + id.String() + "/"
	current := func() any { return h.object(worker)["current_task"] }
	if got := current(); got != nil {
		t.Errorf("it runs %v", got)
	}
	_, waiting := h.dispatch("dummy_task", nil, tasking.Options{Exclusive: []string{"a"}})
	h.claim(id)
	if got := current(); got != waiting {
		t.Errorf("it runs %v, want %s", got, waiting)
	}
	last, lastHref := h.dispatch("dummy_task", nil, tasking.Options{})
	h.claim(id)
	if got := current(); got != lastHref {
		t.Errorf("of two it runs %v, want the latest, %s", got, lastHref)
	}
	h.finish(id, last, tasking.Completed, "", "")
	h.want(patch(waiting, canceled), http.StatusOK, nil)
	if got := current(); got != nil {
		t.Errorf("it runs %v", got)
	}
}

func TestWorkerHasPulpsFieldsInTheirOrder(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	id := h.register("4711@host")
	worker := root + "workers/" + id.String() + "/"
	h.exec("UPDATE app_status SET last_heartbeat = last_heartbeat + interval '1 second'")
	body := h.want(get(worker), http.StatusOK, nil).body
	fields := []string{"pulp_href", "prn", "pulp_created", "pulp_last_updated", "name", "last_heartbeat", "versions", "current_task"}
	if diff := cmp.Diff(fields, members(t, body)); diff != "" {
		t.Errorf("fields (-want +got):\n%s", diff)
	}
	got := h.object(worker)
	created, _ := got["pulp_created"].(string)
	beat, _ := got["last_heartbeat"].(string)
	if !times.MatchString(created) || !times.MatchString(beat) || beat <= created {
		t.Errorf("created %q, beat %q", created, beat)
	}
	if diff := cmp.Diff(map[string]any{
		"pulp_href": worker, "prn": "prn:core.appstatus:" + id.String(), "pulp_created": created, "pulp_last_updated": beat, "name": "4711@host",
		"last_heartbeat": beat, "versions": map[string]any{"core": builtin.Version}, "current_task": nil,
	}, got); diff != "" {
		t.Errorf("worker (-want +got):\n%s", diff)
	}
	var page struct{ Results []json.RawMessage }
	h.get("workers/", &page)
	if len(page.Results) != 1 || string(page.Results[0]) != string(body) {
		t.Errorf("in a list %s, alone %s", page.Results, body)
	}
	h.get("workers/?fields=name,current_task", &page)
	if diff := cmp.Diff([]string{"name", "current_task"}, members(t, page.Results[0])); diff != "" {
		t.Errorf("selected (-want +got):\n%s", diff)
	}
}

func TestMissingWorkerIsListedUntilItIsSwept(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	values := newWorkers(h)
	var page struct{ Count int }
	h.get("workers/?missing=true", &page)
	h.want(get(values["beta"]), http.StatusOK, nil)
	if page.Count != 1 {
		t.Errorf("%d are missing", page.Count)
	}
	if _, err := appstatus.Sweep(t.Context(), h.db.Pool); err != nil {
		t.Fatal(err)
	}
	h.get("workers/?missing=true", &page)
	if page.Count != 0 {
		t.Errorf("%d are missing after a sweep", page.Count)
	}
	h.answers(get(values["beta"]), http.StatusNotFound, detailed("No AppStatus matches the given query."))
}

func TestOnlyWorkersAreWorkers(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	for _, typ := range []appstatus.Type{appstatus.API, appstatus.Content} {
		id := h.registerAs(typ, "no worker")
		h.answers(get("workers/"+id.String()+"/"), http.StatusNotFound, detailed("No AppStatus matches the given query."))
	}
	h.answers(get("workers/"), http.StatusOK, `{"count": 0, "next": null, "previous": null, "results": []}`)
}
