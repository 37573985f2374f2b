package api_test

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pithworks/pith/api"
	"github.com/pithworks/pith/tasking"
)

// things is a plugin as somebody else would write one, after the pattern of Pulp's file repositories: things have names and
// versions, which are numbered for each thing. Only a task makes versions. Who makes a thing owns it.
type things struct {
	db             *pgxpool.Pool
	thing, version *api.Resource
	grow           *tasking.Type[growArgs, any]

	// asked counts the statements by which the server has looked up what hrefs and PRNs name.
	asked atomic.Int64
}

const thingTables = `
CREATE TABLE thing (
    id uuid PRIMARY KEY, name text NOT NULL UNIQUE, description text, labels jsonb NOT NULL, weight float8, created_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE TRIGGER roles_drop AFTER DELETE ON thing FOR EACH ROW EXECUTE FUNCTION roles_drop('things.thing');
CREATE TABLE thing_version (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(), thing uuid NOT NULL REFERENCES thing ON DELETE CASCADE, number int NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(), UNIQUE (thing, number)
)`

var thingRoles = []api.Role{
	{Name: "things.thing_creator", Description: "Create things.", Permissions: []string{"things.add_thing"}},
	{
		Name: "things.thing_owner", Description: "Do anything with a thing.",
		Permissions: []string{"things.change_thing", "things.delete_thing", "things.manage_roles_thing", "things.view_thing"},
	},
	{Name: "things.thing_viewer", Description: "View a thing.", Permissions: []string{"things.view_thing"}},
}

type thingBody struct {
	Name        string     `json:"name" api:"required" max:"100" doc:"A name that no other thing has."`
	Description *string    `json:"description" api:"null blank"`
	Labels      api.Labels `json:"pulp_labels"`
	Weight      *float64   `json:"weight" api:"null"`
}

type patchedThingBody struct {
	Name        *string `json:"name" max:"100"`
	Description *string `json:"description" api:"null blank"`
}

type thingReply struct {
	PulpHref          string     `json:"pulp_href"`
	PRN               string     `json:"prn"`
	PulpCreated       api.Time   `json:"pulp_created"`
	PulpLastUpdated   api.Time   `json:"pulp_last_updated"`
	VersionsHref      string     `json:"versions_href"`
	Labels            api.Labels `json:"pulp_labels"`
	LatestVersionHref *string    `json:"latest_version_href"`
	Name              string     `json:"name"`
	Description       *string    `json:"description"`
	Weight            *api.Float `json:"weight"`
}

type thingVersionReply struct {
	PulpHref    string   `json:"pulp_href"`
	PRN         string   `json:"prn"`
	PulpCreated api.Time `json:"pulp_created"`
	Number      int      `json:"number"`
	Thing       string   `json:"thing" doc:"The href of the thing."`
}

// pace is how a thing grows.
type pace string

// Choices are the paces.
func (pace) Choices() []string { return []string{"slow", "fast"} }

type growBody struct {
	By   *int    `json:"by" doc:"How many versions to make. Default: 1."`
	Pace pace    `json:"pace" default:"\"slow\""`
	Like *string `json:"like" doc:"The href or PRN of a version that the new ones shall be like."`
}

type growArgs struct {
	Thing string `json:"thing"`
	By    int    `json:"by"`
}

// newThings makes the plugin; with no database it can only be described.
func newThings(db *pgxpool.Pool) *things {
	p := &things{db: db}
	p.grow = tasking.NewType("things.app.tasks.grow", p.growing, tasking.TypeConfig{Versions: map[string]string{"things": "1.2.0"}})
	p.thing = &api.Resource{
		Path: "things/things/thing/", Name: "things_things_thing", Key: "things_things_thing", ID: "thing_pk",
		Model: "things.thing", Noun: "Thing", Tag: "Things: Things",
		Existing: func(ctx context.Context, keys []string) ([]string, error) {
			p.asked.Add(1)
			return columns(ctx, p.db, pgx.RowTo[string], "SELECT id::text FROM thing WHERE id = ANY ($1::uuid[])", keys)
		},
	}
	p.version = &api.Resource{
		Parent: p.thing, Path: "versions/", Name: "things_things_thing_versions", Key: "things_things_thing_version", ID: "number", Numbered: true,
		Model: "things.thingversion", Noun: "ThingVersion", Tag: "Things: Thing Versions",
		Locate: p.locate, Identify: p.identify,
	}
	all, versions := p.things(), p.versions()
	p.thing.Operations = slices.Concat([]api.Operation{
		{
			Method: http.MethodGet, Verb: "list", Summary: "List things.", Collection: all, Replies: map[int]any{http.StatusOK: api.Page[thingReply]{}},
			Do: api.Bare(func(ctx context.Context, r *api.Request) (api.Reply, error) { return p.list(ctx, r, all) }),
		},
		{
			Method: http.MethodPost, Verb: "create", Summary: "Create a thing.", Allow: p.may("add"),
			Replies: map[int]any{http.StatusCreated: thingReply{}}, Do: api.With(p.create),
		},
		{
			Method: http.MethodGet, Path: "{}", Verb: "read", Summary: "Read a thing.", Allow: p.may("view"),
			Replies: map[int]any{http.StatusOK: thingReply{}}, Do: api.Bare(p.read),
		},
		{
			Method: http.MethodPatch, Path: "{}", Verb: "partial_update", Summary: "Change a thing.", Allow: p.may("change"),
			Replies: map[int]any{http.StatusOK: thingReply{}}, Do: api.With(p.change),
		},
		{
			Method: http.MethodDelete, Path: "{}", Verb: "delete", Summary: "Delete a thing.", Allow: p.may("delete"),
			Replies: map[int]any{http.StatusNoContent: nil}, Do: api.Bare(p.remove),
		},
		{
			Method: http.MethodPost, Path: "{}grow/", Verb: "grow", Summary: "Make versions of a thing.", Allow: p.may("change"),
			Replies: map[int]any{http.StatusAccepted: api.AsyncOperationReply{}}, Do: api.With(p.growThing),
		},
	}, api.RoleOperations("things.manage_roles_thing", "things.view_thing"),
		api.LabelOperations("things.change_thing", "things.view_thing", p.setLabel, p.unsetLabel))
	p.version.Operations = []api.Operation{
		{
			Method: http.MethodGet, Verb: "list", Summary: "List the versions of a thing.", Collection: versions, Allow: p.may("view"),
			Replies: map[int]any{http.StatusOK: api.Page[thingVersionReply]{}},
			Do:      api.Bare(func(ctx context.Context, r *api.Request) (api.Reply, error) { return p.listVersions(ctx, r, versions) }),
		},
		{
			Method: http.MethodGet, Path: "{}", Verb: "read", Summary: "Read a version of a thing.", Allow: p.may("view"),
			Replies: map[int]any{http.StatusOK: thingVersionReply{}}, Do: api.Bare(p.readVersion),
		},
	}
	return p
}

// component is what the plugin brings to the API.
func (p *things) component() api.Component {
	return api.Component{
		Label: "things", Version: "1.2.3", Package: "pulp-things", Module: "pulp_things.app",
		Resources: []*api.Resource{p.thing, p.version}, Roles: thingRoles,
	}
}

// things are what users see of them.
func (p *things) things() *api.Collection {
	return &api.Collection{
		Relation: "thing",
		Filters: api.Filters{
			Key: "id", Newest: "created_at DESC, id",
			Orders: map[string]string{"name": "name", "pulp_created": "created_at"},
			Fields: []api.Field{
				{Name: "pulp_id", Column: "id", Kind: api.UUIDField, Lookups: []string{"in"}},
				{Name: "pulp_href", Column: "id", Kind: api.UUIDField, Lookups: []string{"in"}},
				{Name: "prn", Column: "id", Kind: api.UUIDField, Lookups: []string{"in"}},
				{Name: "name", Column: "name", Kind: api.TextField},
				{Name: "pulp_label_select", Column: "labels", Kind: api.LabelsField},
				{Name: "version", Kind: api.UUIDField, Condition: "id = (SELECT v.thing FROM thing_version v WHERE v.id = %s)"},
			},
		},
		References: map[string]*api.Resource{"pulp_href": p.thing, "prn": p.thing, "version": p.version},
		Scope: func(ctx context.Context, r *api.Request) (string, []any, error) {
			return r.Visible(ctx, p.thing, "things.view_thing")
		},
	}
}

// versions are those of the thing that the path names.
func (p *things) versions() *api.Collection {
	return &api.Collection{
		Relation: "thing_version",
		Filters: api.Filters{
			Key: "id", Newest: "number DESC", Orders: map[string]string{"number": "number"},
			Fields: []api.Field{{Name: "number", Column: "number", Kind: api.IntField}},
		},
		Scope: func(_ context.Context, r *api.Request) (string, []any, error) {
			return "thing = $1::uuid", []any{r.PathValue("thing_pk")}, nil
		},
	}
}

// may asks whether the user has a permission on the thing that the path names, or on all.
func (p *things) may(action string) func(context.Context, *api.Request) error {
	return func(ctx context.Context, r *api.Request) error {
		return r.May(ctx, p.thing, "things."+action+"_thing", "things.view_thing")
	}
}

// columns reads rows.
func columns[T any](ctx context.Context, db *pgxpool.Pool, scan pgx.RowToFunc[T], sql string, args ...any) ([]T, error) {
	rows, err := db.Query(ctx, sql, args...)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, scan)
}

func (p *things) locate(ctx context.Context, keys []string) (map[string][]string, error) {
	p.asked.Add(1)
	type row struct{ ID, Thing, Number string }
	rows, err := columns(ctx, p.db, pgx.RowToStructByPos[row], "SELECT id::text, thing::text, number::text FROM thing_version WHERE id = ANY ($1::uuid[])", keys)
	paths := map[string][]string{}
	for _, v := range rows {
		paths[v.ID] = []string{v.Thing, v.Number}
	}
	return paths, err
}

func (p *things) identify(ctx context.Context, paths [][]string) ([]string, error) {
	p.asked.Add(1)
	var things, numbers []string
	for _, path := range paths {
		things, numbers = append(things, path[0]), append(numbers, path[1])
	}
	return columns(ctx, p.db, pgx.RowTo[string], `SELECT coalesce(v.id::text, '') FROM unnest($1::uuid[], $2::int[]) WITH ORDINALITY k (thing, number, n)
		LEFT JOIN thing_version v USING (thing, number) ORDER BY k.n`, things, numbers)
}

// replies reads things in the order of their keys.
func (p *things) replies(ctx context.Context, r *api.Request, keys ...string) ([]thingReply, error) {
	return columns(ctx, p.db, func(row pgx.CollectableRow) (t thingReply, err error) {
		var key string
		var latest *int
		var weight *float64
		err = row.Scan(&key, &t.Name, &t.Description, &t.Labels, &weight, &t.PulpCreated.Time, &latest)
		t.PulpHref, t.PRN, t.PulpLastUpdated = r.Href(p.thing, key), p.thing.PRN(key), t.PulpCreated
		t.VersionsHref, t.Weight = t.PulpHref+"versions/", (*api.Float)(weight)
		if latest != nil {
			href := r.Href(p.version, key, strconv.Itoa(*latest))
			t.LatestVersionHref = &href
		}
		return t, err
	}, `SELECT t.id::text, t.name, t.description, t.labels, t.weight, t.created_at, (SELECT max(v.number) FROM thing_version v WHERE v.thing = t.id)
		FROM unnest($1::uuid[]) WITH ORDINALITY k (id, n) JOIN thing t USING (id) ORDER BY k.n`, keys)
}

// reply reads the thing that the path names.
func (p *things) reply(ctx context.Context, r *api.Request) (thingReply, error) {
	list, err := p.replies(ctx, r, r.PathValue("thing_pk"))
	if err == nil && len(list) == 0 {
		err = api.NotFound("Thing")
	}
	if err != nil {
		return thingReply{}, err
	}
	return list[0], nil
}

func (p *things) list(ctx context.Context, r *api.Request, all *api.Collection) (api.Reply, error) {
	found, err := r.Page(ctx, all)
	if err != nil {
		return api.Reply{}, err
	}
	list, err := p.replies(ctx, r, found.Keys...)
	if err != nil {
		return api.Reply{}, err
	}
	return api.OK(api.NewPage(found, list))
}

func (p *things) create(ctx context.Context, r *api.Request, body thingBody) (api.Reply, error) {
	if body.Labels == nil {
		body.Labels = api.Labels{}
	}
	labels, err := json.Marshal(body.Labels)
	if err != nil {
		return api.Reply{}, err
	}
	key := uuid.NewString()
	if err := r.Grant(ctx, p.thing, key, "things.thing_owner"); err != nil {
		return api.Reply{}, err
	}
	made, err := p.db.Exec(ctx, "INSERT INTO thing (id, name, description, labels, weight) VALUES ($1::uuid, $2::text, $3::text, $4::jsonb, $5::float8) ON CONFLICT DO NOTHING",
		key, body.Name, body.Description, string(labels), body.Weight)
	if err != nil {
		return api.Reply{}, err
	}
	if made.RowsAffected() == 0 {
		return api.Reply{}, errors.Join(api.FieldErrors{"name": []string{"This field must be unique."}}, r.Revoke(ctx, p.thing, key))
	}
	list, err := p.replies(ctx, r, key)
	if err != nil || len(list) == 0 {
		return api.Reply{}, err
	}
	return api.Reply{Status: http.StatusCreated, Body: list[0], Header: http.Header{"Location": {list[0].PulpHref}}}, nil
}

func (p *things) read(ctx context.Context, r *api.Request) (api.Reply, error) {
	reply, err := p.reply(ctx, r)
	if err != nil {
		return api.Reply{}, err
	}
	return api.OK(reply)
}

func (p *things) change(ctx context.Context, r *api.Request, body patchedThingBody) (api.Reply, error) {
	_, err := p.db.Exec(ctx, "UPDATE thing SET name = coalesce($2::text, name), description = coalesce($3::text, description) WHERE id = $1::uuid", r.ID, body.Name, body.Description)
	if err != nil {
		return api.Reply{}, err
	}
	return p.read(ctx, r)
}

func (p *things) remove(ctx context.Context, r *api.Request) (api.Reply, error) {
	if _, err := p.reply(ctx, r); err != nil {
		return api.Reply{}, err
	}
	_, err := p.db.Exec(ctx, "DELETE FROM thing WHERE id = $1::uuid", r.ID)
	return api.Reply{Status: http.StatusNoContent}, err
}

func (p *things) setLabel(ctx context.Context, key, label string, value *string) (bool, error) {
	done, err := p.db.Exec(ctx, "UPDATE thing SET labels = labels || jsonb_build_object($2::text, $3::text) WHERE id = $1::uuid", key, label, value)
	return done.RowsAffected() > 0, err
}

// unsetLabel locks the thing, so that the value it answers is the one that it takes away.
func (p *things) unsetLabel(ctx context.Context, key, label string) (*string, bool, error) {
	had, err := columns(ctx, p.db, pgx.RowTo[*string], `WITH had AS (SELECT id, labels ->> $2::text AS value FROM thing WHERE id = $1::uuid AND labels ? $2::text FOR UPDATE)
		UPDATE thing t SET labels = t.labels - $2::text FROM had WHERE t.id = had.id RETURNING had.value`, key, label)
	if err != nil || len(had) == 0 {
		return nil, false, err
	}
	return had[0], true, nil
}

func (p *things) growThing(ctx context.Context, r *api.Request, body growBody) (api.Reply, error) {
	t, err := p.reply(ctx, r)
	if err != nil {
		return api.Reply{}, err
	}
	args := growArgs{Thing: r.ID, By: 1}
	if body.By != nil {
		args.By = *body.By
	}
	if body.Pace == "fast" && args.By > 5 {
		return api.Reply{}, api.FieldErrors{api.NonField: []string{"A thing grows by more than 5 slowly only."}}
	}
	options := tasking.Options{Exclusive: []string{t.PRN}}
	if body.Like != nil {
		named, err := r.Resolve(ctx, *body.Like)
		if err != nil {
			return api.Reply{}, err
		}
		if named[0].Resource != p.version || named[0].Keys[0] != r.ID {
			return api.Reply{}, api.FieldErrors{"like": []string{"URI not valid: " + *body.Like}}
		}
		options.Shared = []string{named[0].PRN()}
	}
	return r.Dispatch(ctx, p.grow.Request(args, options))
}

// growing is the task that makes versions.
func (p *things) growing(ctx context.Context, run *tasking.Run, args growArgs) (any, error) {
	for range args.By {
		var id string
		err := p.db.QueryRow(ctx, `INSERT INTO thing_version (thing, number)
			SELECT $1::uuid, coalesce(max(v.number), 0) + 1 FROM thing_version v WHERE v.thing = $1::uuid RETURNING id::text`, args.Thing).Scan(&id)
		if err == nil {
			err = run.AddCreatedResource(ctx, p.version.PRN(id))
		}
		if err != nil {
			return nil, err
		}
	}
	return nil, nil
}

// versionReplies reads versions by the latest first.
func (p *things) versionReplies(ctx context.Context, r *api.Request, condition string, args ...any) ([]thingVersionReply, error) {
	return columns(ctx, p.db, func(row pgx.CollectableRow) (v thingVersionReply, err error) {
		var key, thing string
		var created time.Time
		err = row.Scan(&key, &thing, &v.Number, &created)
		v.PulpHref, v.PRN, v.PulpCreated = r.Href(p.version, thing, strconv.Itoa(v.Number)), p.version.PRN(key), api.Time{Time: created}
		v.Thing = r.Href(p.thing, thing)
		return v, err
	}, "SELECT id::text, thing::text, number, created_at FROM thing_version WHERE "+condition+" ORDER BY number DESC", args...)
}

func (p *things) listVersions(ctx context.Context, r *api.Request, versions *api.Collection) (api.Reply, error) {
	if _, err := p.reply(ctx, r); err != nil {
		return api.Reply{}, err
	}
	found, err := r.Page(ctx, versions)
	if err != nil {
		return api.Reply{}, err
	}
	list, err := p.versionReplies(ctx, r, "id = ANY ($1::uuid[])", found.Keys)
	if err != nil {
		return api.Reply{}, err
	}
	return api.OK(api.NewPage(found, list))
}

func (p *things) readVersion(ctx context.Context, r *api.Request) (api.Reply, error) {
	t, err := p.reply(ctx, r)
	if err != nil {
		return api.Reply{}, err
	}
	list, err := p.versionReplies(ctx, r, "thing = $1::uuid AND number = $2::int", r.PathValue("thing_pk"), r.ID)
	switch {
	case err != nil:
		return api.Reply{}, err
	case len(list) == 0:
		return api.Reply{}, api.NotFound("ThingVersion")
	}
	list[0].Thing = t.PulpHref
	return api.OK(list[0])
}
