package clients_test

import (
	"encoding/json"
	"testing"

	"github.com/pithworks/pith/tasking"
	"github.com/pithworks/pith/worker"
)

// seed makes schemathesis try the same again.
const seed = "1"

func TestNothingThatTheDocumentAllowsBreaksTheServer(t *testing.T) {
	t.Parallel()
	schemathesis := program(t, "schemathesis")
	d := deploy(t, worker.Config{}, "one@test")
	d.addUser(t, "alice", false)
	keys := map[string][]string{"id": {"2"}}
	for range 20 {
		href := d.dispatch(t, helpers+"dummy_task", nil, tasking.Options{})
		keys["task"] = append(keys["task"], id(t, href).String())
	}
	for range 3 {
		group, leader := d.group(t, 0)
		d.reaches(t, tasking.Completed, leader)
		keys["task_group"] = append(keys["task_group"], id(t, group).String())
	}
	schedule, err := d.client.SaveSchedule(t.Context(), tasking.Schedule{Name: "yearly", Task: helpers + "dummy_task", Cron: "0 0 1 1 *"})
	if err != nil {
		t.Fatal(err)
	}
	keys["task_schedule"] = []string{schedule.ID.String()}
	var app string
	if err := d.db.Direct.QueryRow(t.Context(), "SELECT id::text FROM app_status WHERE app_type = 'worker'").Scan(&app); err != nil {
		t.Fatal(err)
	}
	keys["worker"] = []string{app}
	there, err := json.Marshal(keys)
	if err != nil {
		t.Fatal(err)
	}
	env := []string{"PYTHONPATH=" + source(t, "."), "SCHEMATHESIS_HOOKS=schemathesis_hooks", "PITH_KEYS=" + string(there)}
	r := run(t, t.TempDir(), env, schemathesis, "--no-color", "run", d.url+root+"docs/api.json?pk_path=1", "--url", d.url, "--auth", "admin:password",
		"--checks", "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance",
		"--max-examples", "40", "--seed", seed, "--generation-database", "none", "--continue-on-failure")
	if r.code != 0 {
		t.Errorf("status %d\n%s%s", r.code, r.out, r.err)
	}
	t.Log(r.out)
}
