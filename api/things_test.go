package api_test

import (
	"context"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/pithworks/pith/api"
	"github.com/pithworks/pith/tasking"
)

// things is a plugin as somebody else would write one, after the pattern of Pulp's file repositories: things have names and
// versions, which are numbered for each thing. Only a task makes versions. Everything is in memory.
type things struct {
	thing, version *api.Resource
	grow           *tasking.Type[growArgs, any]

	mu  sync.Mutex
	all []*thing
}

type thing struct {
	id       uuid.UUID
	body     thingBody
	created  time.Time
	versions []time.Time
}

type thingBody struct {
	Name        string            `json:"name" api:"required" max:"100" doc:"A name that no other thing has."`
	Description *string           `json:"description" api:"null blank"`
	Labels      map[string]string `json:"pulp_labels"`
}

type patchedThingBody struct {
	Name        *string `json:"name" max:"100"`
	Description *string `json:"description" api:"null blank"`
}

type thingReply struct {
	PulpHref          string            `json:"pulp_href"`
	PRN               string            `json:"prn"`
	PulpCreated       api.Time          `json:"pulp_created"`
	PulpLastUpdated   api.Time          `json:"pulp_last_updated"`
	VersionsHref      string            `json:"versions_href"`
	Labels            map[string]string `json:"pulp_labels"`
	LatestVersionHref *string           `json:"latest_version_href"`
	Name              string            `json:"name"`
	Description       *string           `json:"description"`
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
	By   *int `json:"by" doc:"How many versions to make. Default: 1."`
	Pace pace `json:"pace" default:"\"slow\""`
}

type growArgs struct {
	Thing string `json:"thing"`
	By    int    `json:"by"`
}

func newThings() *things {
	p := &things{}
	p.grow = tasking.NewType("things.app.tasks.grow", func(ctx context.Context, run *tasking.Run, args growArgs) (any, error) {
		p.mu.Lock()
		t := p.find(args.Thing)
		for range args.By {
			t.versions = append(t.versions, time.Now())
		}
		p.mu.Unlock()
		return nil, run.AddCreatedResource(ctx, p.thing.PRN(args.Thing))
	}, tasking.TypeConfig{Versions: map[string]string{"things": "1.2.0"}})
	p.thing = &api.Resource{
		Path: "things/things/thing/", Name: "things_things_thing", Key: "things_things_thing", ID: "thing_pk",
		Model: "things.thing", Noun: "Thing", Tag: "Things: Things",
		Exists: func(_ context.Context, key string) (bool, error) {
			p.mu.Lock()
			defer p.mu.Unlock()
			return p.find(key) != nil, nil
		},
		Operations: []api.Operation{
			{Method: http.MethodGet, Verb: "list", Summary: "List things.", Replies: map[int]any{http.StatusOK: api.Page[thingReply]{}}, Do: api.Bare(p.list)},
			{Method: http.MethodPost, Verb: "create", Summary: "Create a thing.", Replies: map[int]any{http.StatusCreated: thingReply{}}, Do: api.With(p.create)},
			{Method: http.MethodGet, Path: "{}", Verb: "read", Summary: "Read a thing.", Replies: map[int]any{http.StatusOK: thingReply{}}, Do: api.Bare(p.read)},
			{
				Method: http.MethodPatch, Path: "{}", Verb: "partial_update", Summary: "Change a thing.",
				Replies: map[int]any{http.StatusOK: thingReply{}}, Do: api.With(p.change),
			},
			{Method: http.MethodDelete, Path: "{}", Verb: "delete", Summary: "Delete a thing.", Replies: map[int]any{http.StatusNoContent: nil}, Do: api.Bare(p.remove)},
			{
				Method: http.MethodPost, Path: "{}grow/", Verb: "grow", Summary: "Make versions of a thing.",
				Replies: map[int]any{http.StatusAccepted: api.TaskStarted{}}, Do: api.With(p.growThing),
			},
		},
	}
	p.version = &api.Resource{
		Parent: p.thing, Path: "versions/", Name: "things_things_thing_versions", Key: "things_things_thing_version", ID: "number", Numbered: true,
		Model: "things.thingversion", Noun: "ThingVersion", Tag: "Things: Thing Versions",
		Operations: []api.Operation{
			{
				Method: http.MethodGet, Verb: "list", Summary: "List the versions of a thing.",
				Replies: map[int]any{http.StatusOK: api.Page[thingVersionReply]{}}, Do: api.Bare(p.listVersions),
			},
			{
				Method: http.MethodGet, Path: "{}", Verb: "read", Summary: "Read a version of a thing.",
				Replies: map[int]any{http.StatusOK: thingVersionReply{}}, Do: api.Bare(p.readVersion),
			},
		},
	}
	return p
}

// component is what the plugin brings to the API.
func (p *things) component() api.Component {
	return api.Component{
		Label: "things", Version: "1.2.3", Package: "pulp-things", Module: "pulp_things.app", Resources: []*api.Resource{p.thing, p.version},
	}
}

// find finds the thing of a key; nil: there is none. The caller holds the lock.
func (p *things) find(key string) *thing {
	i := slices.IndexFunc(p.all, func(t *thing) bool { return t.id.String() == key })
	if i < 0 {
		return nil
	}
	return p.all[i]
}

// named finds the thing that a request's path names, by the name of its segment.
func (p *things) named(r *api.Request) (*thing, error) {
	if t := p.find(r.PathValue("thing_pk")); t != nil {
		return t, nil
	}
	return nil, api.NotFound("Thing")
}

func (p *things) reply(r *api.Request, t *thing) thingReply {
	href := r.Href(p.thing, t.id.String())
	reply := thingReply{
		PulpHref: href, PRN: p.thing.PRN(t.id.String()), PulpCreated: api.Time{Time: t.created}, PulpLastUpdated: api.Time{Time: t.created},
		VersionsHref: href + "versions/", Labels: t.body.Labels, Name: t.body.Name, Description: t.body.Description,
	}
	if n := len(t.versions); n > 0 {
		latest := r.Href(p.version, t.id.String(), strconv.Itoa(n))
		reply.LatestVersionHref = &latest
	}
	return reply
}

func (p *things) list(_ context.Context, r *api.Request) (api.Reply, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	page := api.Page[thingReply]{Count: len(p.all), Results: []thingReply{}}
	for _, t := range p.all {
		page.Results = append(page.Results, p.reply(r, t))
	}
	return api.OK(page)
}

func (p *things) create(_ context.Context, r *api.Request, body thingBody) (api.Reply, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if slices.ContainsFunc(p.all, func(t *thing) bool { return t.body.Name == body.Name }) {
		return api.Reply{}, api.FieldErrors{"name": []string{"This field must be unique."}}
	}
	if body.Labels == nil {
		body.Labels = map[string]string{}
	}
	t := &thing{id: uuid.New(), body: body, created: time.Now()}
	p.all = append(p.all, t)
	reply := p.reply(r, t)
	return api.Reply{Status: http.StatusCreated, Body: reply, Header: http.Header{"Location": {reply.PulpHref}}}, nil
}

func (p *things) read(_ context.Context, r *api.Request) (api.Reply, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	t, err := p.named(r)
	if err != nil {
		return api.Reply{}, err
	}
	return api.OK(p.reply(r, t))
}

func (p *things) change(_ context.Context, r *api.Request, body patchedThingBody) (api.Reply, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	t, err := p.named(r)
	if err != nil {
		return api.Reply{}, err
	}
	if body.Name != nil {
		t.body.Name = *body.Name
	}
	if body.Description != nil {
		t.body.Description = body.Description
	}
	return api.OK(p.reply(r, t))
}

func (p *things) remove(_ context.Context, r *api.Request) (api.Reply, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	t, err := p.named(r)
	if err != nil {
		return api.Reply{}, err
	}
	p.all = slices.DeleteFunc(p.all, func(o *thing) bool { return o == t })
	return api.Reply{Status: http.StatusNoContent}, nil
}

func (p *things) growThing(ctx context.Context, r *api.Request, body growBody) (api.Reply, error) {
	p.mu.Lock()
	t, err := p.named(r)
	p.mu.Unlock()
	if err != nil {
		return api.Reply{}, err
	}
	args := growArgs{Thing: t.id.String(), By: 1}
	if body.By != nil {
		args.By = *body.By
	}
	if body.Pace == "fast" && args.By > 5 {
		return api.Reply{}, api.FieldErrors{api.NonField: []string{"A thing grows by more than 5 slowly only."}}
	}
	return r.Dispatch(ctx, p.grow.Request(args, tasking.Options{Exclusive: []string{p.thing.PRN(r.ID)}}))
}

func (p *things) versionReply(r *api.Request, t *thing, number int) thingVersionReply {
	return thingVersionReply{
		PulpHref: r.Href(p.version, t.id.String(), strconv.Itoa(number)), PRN: p.version.PRN(strconv.Itoa(number)),
		PulpCreated: api.Time{Time: t.versions[number-1]}, Number: number, Thing: r.Href(p.thing, t.id.String()),
	}
}

func (p *things) listVersions(_ context.Context, r *api.Request) (api.Reply, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	t, err := p.named(r)
	if err != nil {
		return api.Reply{}, err
	}
	page := api.Page[thingVersionReply]{Count: len(t.versions), Results: []thingVersionReply{}}
	for i := range t.versions {
		page.Results = append(page.Results, p.versionReply(r, t, i+1))
	}
	return api.OK(page)
}

func (p *things) readVersion(_ context.Context, r *api.Request) (api.Reply, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	t, err := p.named(r)
	if err != nil {
		return api.Reply{}, err
	}
	number, err := strconv.Atoi(r.ID)
	if err != nil || number < 1 || number > len(t.versions) {
		return api.Reply{}, api.NotFound("ThingVersion")
	}
	return api.OK(p.versionReply(r, t, number))
}
