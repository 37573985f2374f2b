package doctor

import (
	"cmp"
	"context"
	_ "embed" // the snapshot
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pithworks/pith/db"
	"github.com/pithworks/pith/internal/migrate"
)

//go:generate go test -run TestSnapshotIsCurrent . -update

// snapshotJSON is the schema as the migrations make it: a list of objects. A test keeps it current.
//
//go:embed schema.json
var snapshotJSON []byte

// object is a part of the schema.
type object struct {
	Kind       string `json:"kind"`
	Relation   string `json:"relation,omitempty"` // the table that it belongs to
	Name       string `json:"name"`
	Definition string `json:"definition"`
}

func (o object) key() [3]string { return [3]string{o.Kind, o.Relation, o.Name} }

// stored names what storage parameters are of: a table, or an index of it.
func (o object) stored() string {
	if o.Name != o.Relation {
		return "index " + o.Name
	}
	return "table " + o.Name
}

// String names it for people.
func (o object) String() string {
	switch o.Kind {
	case "column":
		return fmt.Sprintf("column %s.%s", o.Relation, o.Name)
	case "constraint", "policy", "rule", "trigger":
		return fmt.Sprintf("%s %s of table %s", o.Kind, o.Name, o.Relation)
	case "storage":
		return "storage parameters of " + o.stored()
	case "rows":
		return "rows of table " + o.Relation
	}
	return o.Kind + " " + o.Name
}

// snapshot is decoded once.
var snapshot = sync.OnceValues(func() ([]object, error) {
	var want []object
	if err := json.Unmarshal(snapshotJSON, &want); err != nil {
		return nil, fmt.Errorf("decode the schema's snapshot: %w", err)
	}
	return want, nil
})

// names of the snapshot's objects of one kind.
func names(want []object, kind string) (list []string) {
	for _, o := range want {
		if o.Kind == kind {
			list = append(list, o.Name)
		}
	}
	return list
}

// zeroIntervals undoes what the session's IntervalStyle does to the constraints' text.
var zeroIntervals = strings.NewReplacer("'0'::interval", "'00:00:00'::interval", "'@ 0'::interval", "'00:00:00'::interval", "'PT0S'::interval", "'00:00:00'::interval")

// observe reads the schema as it is.
func observe(ctx context.Context, q *db.Queries, on db.DBTX) ([]object, error) {
	rows, err := q.DoctorObjects(ctx, on)
	if err != nil {
		return nil, err
	}
	have := make([]object, 0, len(rows))
	for _, r := range rows {
		o := object(r)
		o.Definition = zeroIntervals.Replace(strings.Join(strings.Fields(o.Definition), " "))
		have = append(have, o)
	}
	return have, nil
}

// buckets describes the rows of resource_lock. Its primary key makes three numbers tell all.
func buckets(ctx context.Context, q *db.Queries, on db.DBTX) (object, error) {
	b, err := q.DoctorBuckets(ctx, on)
	if err != nil {
		return object{}, err
	}
	return object{Kind: "rows", Relation: "resource_lock", Definition: fmt.Sprintf("%d buckets, %d to %d", b.Buckets, b.First, b.Last)}, nil
}

func (x *examination) lookAtSchema(ctx context.Context, f *findings) error {
	err := migrate.Check(ctx, x.pool)
	var version *migrate.VersionError
	var pg *pgconn.PgError
	switch {
	case errors.As(err, &version):
		x.foreign, x.failed["schema"] = true, true
		elsewhere, lerr := x.q.DoctorSchemas(ctx, x.pool)
		if lerr != nil {
			f.unseen(lerr, x.cfg.Timeout)
		}
		here := func(s db.DoctorSchemasRow) bool { return s.Usable && s.OnPath }
		switch {
		case len(elsewhere) > 0 && !slices.ContainsFunc(elsewhere, here):
			x.hidden(f, elsewhere)
		case version.Have == 0:
			f.add(Error, "run `pith migrate up`", "the database has no schema of Pith (this binary needs version %d)", version.Need)
		case errors.Is(err, migrate.ErrTooOld):
			f.add(Error, "run `pith migrate up`", "the schema is at version %d, this binary needs %d", version.Have, version.Need)
		case version.Serves():
			f.add(Note, "", "the schema is at version %d, newer than this binary's %d, and serves it", version.Have, version.Need)
		default:
			f.add(Error, fmt.Sprintf("use a newer binary, or run that one's `pith migrate down-to %d`", version.Need),
				"the schema is at version %d, this binary knows only up to %d", version.Have, version.Need)
		}
		return nil
	case errors.As(err, &pg) && pg.Code == insufficientPrivilege:
		x.failed["schema"] = true
		f.add(Error, fmt.Sprintf("GRANT SELECT ON goose_db_version TO %s", identifier(x.server.Role)),
			"role %s may not read the schema's version, and nothing of Pith starts: %s", x.server.Role, pg.Message)
		return nil
	case err != nil:
		return err
	}
	need, err := migrate.Newest()
	if err != nil {
		return err
	}
	f.ok("at version %d, as this binary needs it", need)
	return nil
}

// hidden tells of schemas of Pith that the role does not find.
func (x *examination) hidden(f *findings, schemas []db.DoctorSchemasRow) {
	names := make([]string, len(schemas))
	for i, s := range schemas {
		names[i] = identifier(s.Name)
	}
	role, first := identifier(x.server.Role), schemas[0]
	var why, remedy []string
	if !first.Usable {
		why = append(why, fmt.Sprintf("role %s has no USAGE on it", x.server.Role))
		remedy = append(remedy, fmt.Sprintf("GRANT USAGE ON SCHEMA %s TO %s;", identifier(first.Name), role))
	}
	if !first.OnPath {
		why = append(why, "search_path does not name it")
		remedy = append(remedy, x.alterRole("search_path", first.Name))
	}
	f.add(Error, strings.Join(remedy, " "), "Pith's schema lies in %s, and is not found: %s", strings.Join(names, ", "), strings.Join(why, ", and "))
}

// shown is how many findings of a kind are listed one by one.
const shown = 20

func (x *examination) lookAtDrift(ctx context.Context, f *findings) error {
	if quoted := "quote_all_identifiers"; x.settings[quoted].Setting == "on" {
		f.add(Warning, x.alterRole(quoted, "off"), "%s is on%s: what the schema's parts look like cannot be compared", quoted, x.from(quoted))
		return nil
	}
	want, err := snapshot()
	if err != nil {
		return err
	}
	have, err := observe(ctx, x.q, x.pool)
	if err != nil {
		return err
	}
	if slices.ContainsFunc(have, func(o object) bool { return o.Kind == "table" && o.Name == "resource_lock" }) {
		b, err := buckets(ctx, x.q, x.pool)
		if err != nil {
			f.unseen(err, x.cfg.Timeout)
			want = slices.DeleteFunc(slices.Clone(want), func(o object) bool { return o.Kind == "rows" })
		} else {
			have = append(have, b)
		}
	}
	list := drift(withRoles(want, have), have)
	slices.SortStableFunc(list, func(a, b Finding) int { return b.Severity.rank() - a.Severity.rank() })
	for _, d := range list[:min(len(list), shown)] {
		f.add(d.Severity, d.Remedy, "%s", d.Message)
	}
	if more := len(list) - shown; more > 0 {
		f.add(list[shown].Severity, "", "%d more differences", more)
	}
	f.ok("as the migrations made it")
	return nil
}

// drift tells how a schema differs from the one wanted.
func drift(want, have []object) (list []Finding) {
	found := map[[3]string]object{}
	for _, o := range have {
		found[o.key()] = o
	}
	known, gone := map[[3]string]bool{}, map[string]bool{}
	for _, w := range want {
		known[w.key()] = true
		if _, ok := found[w.key()]; w.Kind == "table" && !ok {
			gone[w.Name] = true
		}
	}
	for _, w := range want {
		h, ok := found[w.key()]
		switch {
		case ok && h.Definition == w.Definition, w.Kind != "table" && gone[w.Relation]:
		case ok:
			list = append(list, differs(w, h))
		default:
			list = append(list, lacks(w))
		}
	}
	for _, h := range have {
		of := func(kind, name string) bool { return known[[3]string{kind, h.Relation, name}] }
		if !known[h.key()] && of("table", h.Relation) {
			if h.Kind == "storage" && h.Name != h.Relation && !of("index", h.Name) && !of("constraint", h.Name) {
				continue // of an index that is unknown itself
			}
			if finding, ok := unknown(h); ok {
				list = append(list, finding)
			}
		}
	}
	return list
}

const fromMigrations = "somebody changed it by hand: take it from the migrations of this release (sql/schema)"

func lacks(w object) Finding {
	f := Finding{Severity: Error, Message: w.String() + " is missing", Remedy: fromMigrations}
	switch w.Kind {
	case "index":
		f.Remedy = w.Definition
	case "constraint":
		f.Remedy = fmt.Sprintf("ALTER TABLE %s ADD CONSTRAINT %s %s", w.Relation, w.Name, w.Definition)
	case "column":
		f.Remedy = fmt.Sprintf("ALTER TABLE %s ADD COLUMN %s %s", w.Relation, w.Name, w.Definition)
	case "storage":
		f.Severity = Note
		f.Message = w.String() + " are at their defaults"
		f.Remedy = alterStorage(w, object{})
	case "policy":
		f.Remedy = runRoles
	}
	return f
}

func differs(w, h object) Finding {
	f := Finding{Severity: Error, Remedy: fromMigrations}
	f.Message = fmt.Sprintf("%s differs: it is %s, not %s", w, h.Definition, w.Definition)
	switch w.Kind {
	case "table":
		if strings.HasSuffix(w.Definition, rowSecurity) {
			f.Remedy = runRoles
		}
	case "function":
		head, body, _ := strings.Cut(w.Definition, "; body ")
		what := "its head and its body"
		switch hHead, hBody, _ := strings.Cut(h.Definition, "; body "); {
		case strings.Contains(hBody, "; "):
			what = "there are several of that name"
		case head == hHead:
			what = "its body"
		case body == hBody:
			what = "its head"
			if strings.Contains(w.Definition, asOwner) {
				f.Remedy = runRoles
			}
		}
		f.Message = fmt.Sprintf("%s differs: %s", w, what)
	case "index":
		if h.Definition == w.Definition+" INVALID" {
			f.Message = w.String() + " is invalid: its making was broken off, and it is not used"
			f.Remedy = "REINDEX INDEX CONCURRENTLY " + w.Name
		}
	case "storage":
		f.Severity = Note
		f.Message = fmt.Sprintf("%s are %s, not %s: fine if that is your own tuning", w, h.Definition, w.Definition)
		f.Remedy = alterStorage(w, h)
	case "policy":
		f.Remedy = runRoles
	case "rows":
		f.Message = fmt.Sprintf("%s differ: %s, not %s: resources whose row is missing are not locked", w, h.Definition, w.Definition)
		f.Remedy = "INSERT INTO resource_lock SELECT generate_series(-64, 4095) ON CONFLICT DO NOTHING"
	}
	return f
}

// alterStorage makes the storage parameters that there are those that are wanted.
func alterStorage(want, have object) string {
	parameters := func(o object) []string {
		return strings.FieldsFunc(o.Definition, func(r rune) bool { return r == ',' || r == ' ' })
	}
	name := func(parameter string) string { return strings.SplitN(parameter, "=", 2)[0] }
	var set, reset, kept, steps []string
	for _, p := range parameters(want) {
		kept = append(kept, name(p))
		if !slices.Contains(parameters(have), p) {
			set = append(set, strings.Replace(p, "=", " = ", 1))
		}
	}
	for _, p := range parameters(have) {
		if !slices.Contains(kept, name(p)) {
			reset = append(reset, name(p))
		}
	}
	what, _, _ := strings.Cut(cmp.Or(want, have).stored(), " ")
	alter := fmt.Sprintf("ALTER %s %s", strings.ToUpper(what), identifier(cmp.Or(want.Name, have.Name)))
	for _, s := range []struct {
		verb string
		list []string
	}{{"SET", set}, {"RESET", reset}} {
		if len(s.list) > 0 {
			steps = append(steps, fmt.Sprintf("%s %s (%s)", alter, s.verb, strings.Join(s.list, ", ")))
		}
	}
	return strings.Join(steps, "; ")
}

// unknown tells of an object on one of Pith's tables that the migrations did not make.
func unknown(h object) (f Finding, bad bool) {
	f = Finding{Severity: Warning, Message: "unknown " + h.String() + ": " + h.Definition}
	switch h.Kind {
	case "index":
		f.Severity = Note
		f.Remedy = "each index costs every write: drop it if nothing needs it"
	case "column":
		f.Remedy = "drop it: a later migration may need its name"
		if strings.Contains(h.Definition, "NOT NULL") && !strings.Contains(h.Definition, " DEFAULT ") && !strings.Contains(h.Definition, " GENERATED ") {
			f.Severity = Error
			f.Remedy = "drop it, or let it be null: inserts fail"
		}
	case "storage":
		f.Severity = Note
		f.Message = fmt.Sprintf("%s are %s, not the defaults: fine if that is your own tuning", h, h.Definition)
		f.Remedy = alterStorage(object{}, h)
	case "trigger":
		f.Remedy = "it runs inside of every change of the queues: drop it if you can"
	case "policy":
		f.Remedy = "it may hide rows from processes, or refuse what they write: drop it if you can"
	case "constraint", "rule":
		f.Remedy = "it may refuse or change what Pith writes: drop it if you can"
	case "disabled foreign key":
		f.Severity = Error
		f.Message = fmt.Sprintf("foreign key %s of table %s does not act: its triggers are not enabled", h.Name, h.Relation)
		f.Remedy = h.Definition
	default:
		return Finding{}, false
	}
	return f, true
}

// needed are the privileges on tables that processes of Pith use, all but the migrations: their statements
// run as the role that sends them, and so do the functions, whose locks on rows ask for UPDATE. What foreign keys
// do asks for none. After deploy/roles less is needed: see processes.
var needed = map[string]string{
	"api_secret":       "SELECT",
	"api_task":         "SELECT",
	"api_task_state":   "SELECT",
	"api_worker":       "SELECT",
	"app_fleet":        "SELECT, INSERT, UPDATE",
	"app_status":       "SELECT, INSERT, UPDATE, DELETE",
	"auth_user":        "SELECT, INSERT, UPDATE, DELETE",
	"created_resource": "SELECT, INSERT, UPDATE",
	"task_told":        "SELECT",
	"task_usage":       "SELECT, INSERT, UPDATE",
	"goose_db_version": "SELECT",
	"progress_report":  "SELECT, INSERT, UPDATE",
	"resource_lock":    "SELECT, UPDATE",
	"task":             "SELECT, INSERT, UPDATE, DELETE",
	"task_group":       "SELECT, INSERT, UPDATE",
	"task_kind":        "SELECT, INSERT",
	"task_profile":     "SELECT, INSERT, UPDATE",
	"task_reservation": "SELECT, INSERT, UPDATE, DELETE",
	"task_schedule":    "SELECT, INSERT, UPDATE, DELETE",
	"user_role":        "SELECT, INSERT, DELETE",
}

func (x *examination) lookAtPrivileges(ctx context.Context, f *findings) error {
	if x.foreign {
		f.add(Note, "", "was not looked at: see schema")
		return nil
	}
	want, err := snapshot()
	if err != nil {
		return err
	}
	p := db.DoctorPrivilegesParams{Functions: names(want, "function")}
	for table, list := range needed {
		for privilege := range strings.SplitSeq(list, ", ") {
			p.Needed = append(p.Needed, table+" "+privilege)
		}
	}
	for _, process := range processes {
		p.Needed = append(p.Needed, process.privileges...)
	}
	slices.Sort(p.Needed)
	p.Needed = slices.Compact(p.Needed)
	rows, err := x.q.DoctorPrivileges(ctx, x.pool, p)
	if err != nil {
		return err
	}
	roles := false // were made by deploy/roles
	lacking := map[subject][]string{}
	for _, r := range rows {
		if r.Kind == "definer" {
			roles = roles || slices.Contains(definers(), r.Name)
			continue
		}
		s := subject{r.Kind, r.Name}
		lacking[s] = append(lacking[s], r.Privilege)
	}
	if roles {
		x.privilegesOfProcesses(f, lacking)
		return nil
	}
	for s, list := range lacking { // a process does without those on columns
		if list = slices.DeleteFunc(list, func(p string) bool { return strings.Contains(p, "(") }); len(list) == 0 {
			delete(lacking, s)
		} else {
			lacking[s] = list
		}
	}
	order := slices.SortedFunc(maps.Keys(lacking), subject.compare)
	for _, s := range order[:min(len(order), shown)] {
		on := identifier(s.name)
		if s.kind == "function" {
			on = "FUNCTION " + on
		}
		privileges := strings.Join(lacking[s], ", ")
		f.add(Error, fmt.Sprintf("GRANT %s ON %s TO %s", privileges, on, identifier(x.server.Role)),
			"role %s lacks %s on %s %s", x.server.Role, privileges, s.kind, s.name)
	}
	if more := len(order) - shown; more > 0 {
		f.add(Error, "", "role %s lacks privileges on %d more", x.server.Role, more)
	}
	f.ok("role %s may use all tables and functions", x.server.Role)
	return nil
}

// subject is what privileges are on.
type subject struct{ kind, name string }

func (s subject) compare(t subject) int {
	return cmp.Or(cmp.Compare(s.kind, t.kind), cmp.Compare(s.name, t.name))
}
