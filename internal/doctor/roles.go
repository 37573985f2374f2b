package doctor

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
)

// What deploy/roles makes of a schema is looked at here. There the functions that processes call run as their owner,
// so a process's own role needs little: what its statements do beside that.

// process is a kind of process, by what its role needs.
type process struct {
	does string // for people
	// mark is a function that only such a process calls: a role that may is meant to be one. Empty: every role is.
	mark string
	// entitled is a privilege that only such a process has, where no function marks it.
	entitled string
	// functions run as their owner; more are pure, and in the text of statements.
	functions, more []string
	// privileges are those on tables, each as DoctorPrivileges tells it. Columns are told one by one.
	privileges []string
}

// processes are the kinds. Each reads, too.
var processes = []process{
	{
		does: "read", more: []string{"domain_own", "task_reserved"},
		privileges: []string{
			"api_task SELECT", "api_task_state SELECT", "api_worker SELECT", "app_status SELECT", "created_resource SELECT", "goose_db_version SELECT", "progress_report SELECT", "resource_lock SELECT",
			"task SELECT", "task_group SELECT", "task_kind SELECT", "task_profile SELECT", "task_reservation SELECT", "task_schedule SELECT", "task_told SELECT", "task_usage SELECT",
		},
	},
	{
		does: "dispatch and cancel", mark: "task_cancel", functions: []string{"task_cancel", "task_dispatch", "task_own"},
		privileges: slices.Concat(
			onColumns("task_group INSERT", "id", "description"), onColumns("task_group UPDATE", "all_tasks_dispatched"),
			onColumns("task_schedule INSERT", "name"), onColumns("task_schedule INSERT", saved...), onColumns("task_schedule UPDATE", saved...),
			[]string{"task_schedule DELETE"},
		),
	},
	{
		does: "run tasks", mark: "task_turn",
		functions: []string{"app_beat", "app_register", "task_abandoned_finish", "task_dispatch", "task_enqueue_due", "task_own", "task_turn", "task_turn_used"},
		privileges: slices.Concat(
			[]string{
				"app_status DELETE", "created_resource INSERT", "progress_report INSERT", "task DELETE", "task_profile INSERT",
				"user_role SELECT",
			},
			onColumns("task_profile UPDATE", "data"),
			// Of some column, so that rows can be locked.
			onColumns("app_status UPDATE", "name"), onColumns("task UPDATE", "deferred"),
			onColumns("created_resource UPDATE", "resource"),
			onColumns("progress_report UPDATE", "message", "code", "state", "total", "done", "suffix"),
			onColumns("task_group UPDATE", "all_tasks_dispatched"),
		),
	},
	{
		does: "know users", entitled: "api_secret SELECT",
		privileges: slices.Concat(
			[]string{
				"api_secret SELECT", "auth_user SELECT", "auth_user INSERT", "auth_user UPDATE", "auth_user DELETE",
				"user_role SELECT", "user_role INSERT", "user_role DELETE",
			},
			onColumns("task UPDATE", "deferred"), // so that rows can be locked
		),
	},
}

// saved are the columns that saving a schedule writes, but for its name.
var saved = []string{"id", "task_name", "args", "exclusive", "shared", "priority", "dispatch_interval", "cron", "next_dispatch"}

func onColumns(privilege string, columns ...string) []string {
	list := make([]string, len(columns))
	for i, c := range columns {
		list[i] = privilege + " " + c
	}
	return list
}

// definers are the functions that run as their owner: those that processes call, and that of triggers.
func definers() []string {
	list := []string{"roles_drop"}
	for _, p := range processes {
		list = append(list, p.functions...)
	}
	slices.Sort(list)
	return slices.Compact(list)
}

// policies are those of table task.
var policies = []object{
	{Kind: "policy", Relation: "task", Name: "task_lock", Definition: "UPDATE TO PUBLIC USING (true) WITH CHECK (false)"},
	{Kind: "policy", Relation: "task", Name: "task_purge", Definition: "DELETE TO PUBLIC USING ((finished_at IS NOT NULL))"},
	{Kind: "policy", Relation: "task", Name: "task_read", Definition: "SELECT TO PUBLIC USING (true)"},
}

const (
	asOwner   = " SECURITY DEFINER"
	fixedPath = " SET search_path=$schema, pg_temp"
	// rowSecurity is what table task has then.
	rowSecurity = ", with row security"
)

// functionHead parts the definition of a function: up to what may be said of whose rights it has, its settings, its body.
var functionHead = regexp.MustCompile(`^(.* LANGUAGE \w+(?: IMMUTABLE| STABLE)?(?: STRICT)?)((?: SET .*)?)(; body \w+)$`)

// withRoles is what a schema should be: as the migrations make it, or, if some of its functions run as their
// owner, as deploy/roles makes it of that.
func withRoles(want, have []object) []object {
	names := definers()
	ours := func(o object) bool { return o.Kind == "function" && slices.Contains(names, o.Name) }
	if !slices.ContainsFunc(have, func(o object) bool { return ours(o) && strings.Contains(o.Definition, asOwner) }) {
		return want
	}
	want = slices.Clone(want)
	for i, o := range want {
		switch {
		case ours(o):
			want[i].Definition = functionHead.ReplaceAllString(o.Definition, "${1}"+asOwner+"${2}"+strings.ReplaceAll(fixedPath, "$", "$$")+"${3}")
		case o.Kind == "table" && o.Name == "task":
			want[i].Definition += rowSecurity
		}
	}
	return append(want, policies...)
}

const (
	runRoles   = "run deploy/roles/roles.sql of this release as the owner of the tables, as after each migration"
	grantGroup = runRoles + ", and grant the role one of its groups"
)

// privilegesOfProcesses tells what a role lacks of that which the processes need that it is meant for.
func (x *examination) privilegesOfProcesses(f *findings, lacking map[subject][]string) {
	lacks := func(s subject, privilege string) bool { return slices.Contains(lacking[s], privilege) }
	var does []string
	found := map[subject][]string{}
	for _, p := range processes {
		if p.mark != "" && lacks(subject{"function", p.mark}, "EXECUTE") {
			continue
		}
		if table, privilege, ok := strings.Cut(p.entitled, " "); ok && lacks(subject{"table", table}, privilege) {
			continue
		}
		does = append(does, p.does)
		for _, name := range slices.Concat(p.functions, p.more) {
			if s := (subject{"function", name}); lacks(s, "EXECUTE") {
				found[s] = []string{"EXECUTE"}
			}
		}
		for _, need := range p.privileges {
			part := strings.Split(need, " ")
			s, privilege := subject{"table", part[0]}, part[1]
			if len(part) == 3 {
				privilege += " (" + part[2] + ")"
			}
			if lacks(s, privilege) && !slices.Contains(found[s], privilege) {
				found[s] = append(found[s], privilege)
			}
		}
	}
	for i, s := range slices.SortedFunc(maps.Keys(found), subject.compare) {
		if i == shown {
			f.add(Error, "", "role %s lacks privileges on %d more", x.server.Role, len(found)-shown)
			break
		}
		f.add(Error, grantGroup, "role %s lacks %s on %s %s", x.server.Role, strings.Join(found[s], ", "), s.kind, s.name)
	}
	text := strings.Join(does, ", ")
	if len(does) == 1 {
		text = fmt.Sprintf("%s, and nothing else", does[0])
	}
	f.ok("role %s may %s", x.server.Role, text)
}
