package api

import (
	"context"
	"net/http"
	"reflect"
	"strings"
)

// Component is what one plugin brings to the API.
type Component struct {
	// Label is what clients know the component by, such as "core": letters, digits and underscores. No other component has
	// it. Version is PEP 440; clients keep the OpenAPI document for as long as it stays the same.
	Label, Version string
	// Package and Module are told in status, as Python's names in Pulp.
	Package, Module string
	// Resources are served below the API's root.
	Resources []*Resource
	// Roles that users can be given: their names, and those of their permissions, begin with the label and a dot. Default: none.
	Roles []Role
}

// Resource is a kind of object with a path of its own.
type Resource struct {
	// Path of the collection, such as "tasks/": below the API's root, or below one of Parent's objects. It ends with a slash,
	// and needs no escaping.
	Path string
	// Base is the path before that, such as /pith/api/. Default: the API's root.
	Base string
	// Parent is what the collection belongs to one of. Default: none.
	Parent *Resource
	// Name of the collection in the ids of operations, such as "tasks"; Key that of one object, such as "task": its
	// path is {task_href} in the document. No other resource has the Key, nor an operation of the same Name and Verb.
	Name, Key string
	// ID is the name of the last segment of an object's path, unique in the path. Default: Key with "_pk" after it.
	ID string
	// Numbered objects are known by an integer, all others by a UUID.
	Numbered bool
	// Whole objects come with all their fields, whichever the client asks for, as Pulp's users do.
	Whole bool
	// Model is what PRNs name it, such as "core.task", and nothing else. Default: objects have no PRN.
	Model string
	// Existing answers which of these keys objects have. Required with a Model, but with a Parent.
	Existing func(ctx context.Context, keys []string) ([]string, error)
	// Locate and Identify tell which PRN names which path, in bulk. Required with a Model and a Parent: then the key in a PRN
	// is a UUID of the object's own. Locate answers the keys in the paths of those that exist, the parents' first, by the
	// keys in their PRNs; Identify those keys in the order of the paths, "" where nothing is.
	Locate   func(ctx context.Context, keys []string) (map[string][]string, error)
	Identify func(ctx context.Context, paths [][]string) ([]string, error)
	// Noun is the model in error texts, such as "Task".
	Noun string
	// Tag groups the operations in the document, such as "Tasks". In bindings the operations of one Tag are told apart by their
	// Verbs.
	Tag string
	// Operations are what can be done, one per method and path.
	Operations []Operation
}

// Operation is one method of one path.
type Operation struct {
	// Method of HTTP: GET, with which HEAD comes, POST, PUT, PATCH or DELETE.
	Method string
	// Path below the collection: "" is the collection itself, "{}" one of its objects, and what follows may have segments that
	// vary: "{}files/{name}/".
	Path string
	// Verb is the operation's name in the document: the id of "list" is tasks_list.
	Verb string
	// Summary is one sentence for the document.
	Summary string
	// Public operations ask for no credentials.
	Public bool
	// Collection is what a list operation lists. Default: it is none.
	Collection *Collection
	// Parameters of the query, beside those of a Collection. Others are ignored.
	Parameters []Parameter
	// Replies has a value of each type that the operation may answer, by status; nil: no body. Errors that any
	// operation may answer need not be named. Required.
	Replies map[int]any
	// Also is another type that the body of a success may have: a short form.
	Also any
	// Allow refuses users who may not, or whom the object does not concern, before the body is read. Default: all may.
	Allow func(context.Context, *Request) error
	// Do answers a request. Required.
	Do Handler

	modeled bool // is for objects that have a Model and no Parent
}

func (o Operation) also(body any) Operation {
	o.Also = body
	return o
}

func (o Operation) allow(who func(context.Context, *Request) error) Operation {
	o.Allow = who
	return o
}

// Parameter is one of a query.
type Parameter struct {
	Name, Description string
	// Type is JSON's: string, integer or boolean. List: several, separated by commas.
	Type   string
	Format string
	Enum   []string
	List   bool
}

// Handler answers requests, whose body is of one type.
type Handler struct {
	body reflect.Type // nil: none
	do   func(context.Context, *Request, any) (Reply, error)
}

// Bare makes a handler of requests without body.
func Bare(do func(context.Context, *Request) (Reply, error)) Handler {
	return Handler{do: func(ctx context.Context, r *Request, _ any) (Reply, error) { return do(ctx, r) }}
}

// With makes a handler of requests with a body of type B, a struct. See the package's fields for what its tags say.
func With[B any](do func(context.Context, *Request, B) (Reply, error)) Handler {
	return Handler{
		body: reflect.TypeFor[B](),
		do:   func(ctx context.Context, r *Request, body any) (Reply, error) { return do(ctx, r, *body.(*B)) },
	}
}

// Reply is what a handler answers.
type Reply struct {
	Status int
	// Body is sent as JSON; nil: none.
	Body any
	// Header is added to the usual ones.
	Header http.Header
	// raw is sent instead of Body, with a content type in Header.
	raw []byte
}

// OK answers 200.
func OK(body any) (Reply, error) { return Reply{Status: http.StatusOK, Body: body}, nil }

// AsyncOperationReply is the body of replies to requests that a task goes on with.
type AsyncOperationReply struct {
	Task string `json:"task" doc:"The href of the task."`
}

// wildcard stands for one object in an operation's path.
const wildcard = "{}"

// path is the pattern of the resource's collection below the root, with the names of the segments that vary, as
// net/http has them.
func (r *Resource) path() string {
	if r.Parent == nil {
		return r.Path
	}
	return r.Parent.object() + r.Path
}

// object is the pattern of one of the resource's objects.
func (r *Resource) object() string { return r.path() + "{" + r.parameter() + "}/" }

// parameter is the name of the segment that tells the resource's objects apart. It is unique in a path.
func (r *Resource) parameter() string {
	if r.ID != "" {
		return r.ID
	}
	return r.Key + "_pk"
}

// pattern is the path of an operation below the root.
func (r *Resource) pattern(o Operation) string {
	if rest, ok := strings.CutPrefix(o.Path, wildcard); ok {
		return r.object() + rest
	}
	return r.path() + o.Path
}

// base is the path before the resource's pattern.
func (r *Resource) base(root string) string {
	switch {
	case r.Parent != nil:
		return r.Parent.base(root)
	case r.Base != "":
		return r.Base
	}
	return root
}

// hrefPattern is the path of an operation as clients have it who know whole hrefs: the first object, with all before it,
// is one parameter.
func (r *Resource) hrefPattern(root string, o Operation) string {
	if rest, ok := strings.CutPrefix(o.Path, wildcard); ok {
		return "{" + r.Key + "_href}" + rest
	}
	if r.Parent != nil {
		return "{" + r.Parent.Key + "_href}" + r.Path + o.Path
	}
	return r.base(root) + r.Path + o.Path
}
