package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"mime"
	"net/http"
	"path"
	"reflect"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"

	"github.com/google/uuid"

	appstatus "github.com/pithworks/pith/app_status"
	"github.com/pithworks/pith/internal/resend"
)

// route is a path with its operations, by method.
type route struct {
	server     *Server
	resource   *Resource
	operations map[string]*Operation
	// objects are the resources on the way whose objects the path names.
	objects []*Resource
}

// routes makes the routes of all components.
func (s *Server) routes() (http.Handler, error) {
	mux := http.NewServeMux()
	mux.Handle(s.cfg.Root+assetsPath, s.serveAssets())
	mux.HandleFunc("/", elsewhere)
	made := map[string]*route{}
	for _, c := range s.cfg.Components {
		for _, res := range c.Resources {
			for i := range res.Operations {
				o := &res.Operations[i]
				pattern := res.base(s.root) + res.pattern(*o)
				r := made[pattern]
				if r == nil {
					r = &route{server: s, resource: res, operations: map[string]*Operation{}}
					for at := res; at != nil; at = at.Parent {
						if at != res || strings.HasPrefix(o.Path, wildcard) {
							r.objects = append(r.objects, at)
						}
					}
					made[pattern] = r
					exact := pattern
					if strings.HasSuffix(exact, "/") {
						exact += "{$}"
					}
					if err := handle(mux, exact, r); err != nil {
						return nil, fmt.Errorf("api: component %q: %s of %s: %w", c.Label, o.Verb, res.path(), err)
					}
				}
				if r.resource != res || r.operations[o.Method] != nil {
					return nil, fmt.Errorf("api: component %q: %s of %s: %s %s is there twice", c.Label, o.Verb, res.path(), o.Method, pattern)
				}
				r.operations[o.Method] = o
			}
		}
	}
	return slashed(mux), nil
}

// handle is the mux's Handle, but for its panic: only the mux knows whether it can tell a pattern from all others.
func handle(mux *http.ServeMux, pattern string, h http.Handler) (err error) {
	defer func() {
		if p := recover(); p != nil {
			why := fmt.Sprint(p)
			if _, rest, ok := strings.Cut(why, ":\n"); ok { // before that it tells lines of this file
				why, _, _ = strings.Cut(rest, "\n")
			}
			err = errors.New("the path cannot be served, choose another: " + why)
		}
	}()
	mux.Handle(pattern, h)
	return nil
}

// slashed tells a client that has left out a path's last slash where it is, as Pulp does it, whatever the method. (ServeMux
// answers another status.)
func slashed(mux *http.ServeMux) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/") {
			mux.ServeHTTP(w, r)
			return
		}
		// Of a path without a last slash the pattern tells what matches with one.
		if _, pattern := mux.Handler(r); !strings.HasSuffix(pattern, "{$}") {
			mux.ServeHTTP(w, r)
			return
		}
		// What begins with two slashes is no path but another host to a client.
		if path.Clean(r.URL.Path) != r.URL.Path {
			elsewhere(w, r)
			return
		}
		to := r.URL.EscapedPath() + "/"
		if r.URL.RawQuery != "" {
			to += "?" + r.URL.RawQuery
		}
		w.Header().Set("Location", to)
		w.WriteHeader(http.StatusMovedPermanently)
	})
}

// elsewhere answers for paths that are none.
func elsewhere(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(http.StatusNotFound)
	_, _ = w.Write([]byte("<!doctype html>\n<html lang=\"en\">\n<head>\n  <title>Not Found</title>\n</head>\n<body>\n  <h1>Not Found</h1><p>The requested resource was not found on this server.</p>\n</body>\n</html>\n"))
}

// ServeHTTP answers one request.
func (rt *route) ServeHTTP(w http.ResponseWriter, hr *http.Request) {
	defer func() {
		if p := recover(); p != nil {
			rt.server.cfg.Log.Error("request panicked", "path", hr.URL.Path, "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
			rt.send(w, hr, Reply{Status: http.StatusInternalServerError, Body: Detail{"A server error occurred."}}, selection{})
		}
	}()
	query := readPairs(hr.URL.RawQuery)
	r := &Request{Request: hr, Query: query, server: rt.server, resource: rt.resource}
	reply, err := rt.answer(hr.Context(), w.Header(), r)
	if err != nil {
		reply = rt.failed(hr, err)
	}
	rt.send(w, hr, reply, selected(query))
}

// failed is what a client is told of an error. What is none of its business is logged.
func (rt *route) failed(hr *http.Request, err error) Reply {
	if p, ok := problem(err); ok {
		return Reply{Status: p.Status, Body: p.Body, Header: p.Header}
	}
	status, text := http.StatusInternalServerError, "A server error occurred."
	switch {
	case hr.Context().Err() != nil:
		return Reply{Status: http.StatusServiceUnavailable, Body: Detail{"The request was given up."}}
	case errors.Is(err, appstatus.ErrLost):
		status, text = http.StatusServiceUnavailable, "This process was declared missing and registers anew."
	case unreachable(err):
		status, text = http.StatusServiceUnavailable, "The database cannot be reached at the moment."
	}
	rt.server.cfg.Log.Error("request failed", "method", hr.Method, "path", hr.URL.Path, "correlation_id", correlationID(hr.Context()), "err", err)
	return Reply{Status: status, Body: Detail{text}}
}

// answer does what is asked.
func (rt *route) answer(ctx context.Context, header http.Header, r *Request) (Reply, error) {
	method := r.Method
	if method == http.MethodHead {
		method = http.MethodGet
	}
	o := rt.operations[method]
	header.Set("Vary", "Accept")
	if (o == nil || !o.plain()) && !acceptsJSON(r.Header.Get("Accept")) {
		return Reply{}, detail(http.StatusNotAcceptable, "Could not satisfy the request Accept header.")
	}
	public := true
	for _, each := range rt.operations {
		public = public && each.Public
	}
	header.Set("Allow", rt.allowed())
	if !public {
		user, err := rt.server.users.authenticate(ctx, r.Request)
		if err != nil {
			return Reply{}, err
		}
		r.User = user
		traceOf(ctx).user = user.Name
	}
	if o == nil {
		if r.Method == http.MethodOptions && !public {
			return Reply{}, errDenied
		}
		return Reply{}, detail(http.StatusMethodNotAllowed, fmt.Sprintf("Method %q not allowed.", r.Method))
	}
	r.collection = o.Collection
	if err := rt.identify(r); err != nil {
		return Reply{}, err
	}
	if o.Allow != nil {
		if err := o.Allow(ctx, r); err != nil {
			return Reply{}, err
		}
	}
	var body any
	if o.Do.body != nil {
		in, err := readBody(r.Request)
		if err == nil {
			body, err = decode(o.Do.body, in)
		}
		if err != nil {
			return Reply{}, err
		}
	}
	reply, err := o.Do.do(ctx, r, body)
	if err == nil {
		err = o.declares(reply)
	}
	return reply, err
}

// plain reports whether the operation answers something else than JSON, whatever the client accepts.
func (o Operation) plain() bool {
	for status, body := range o.Replies {
		if status < 300 {
			_, raw := body.(media)
			return raw || body == nil
		}
	}
	return false
}

// declares checks that the document tells of such a reply.
func (o Operation) declares(r Reply) error {
	want, ok := o.Replies[r.Status]
	got := reflect.TypeOf(r.Body)
	if _, raw := want.(media); ok && (raw || got == reflect.TypeOf(want) || o.Also != nil && got == reflect.TypeOf(o.Also)) {
		return nil
	}
	return fmt.Errorf("the operation %s does not declare a reply %d of the type %T", o.Verb, r.Status, r.Body)
}

func (rt *route) allowed() string {
	var list []string
	for method := range rt.operations {
		if list = append(list, method); method == http.MethodGet {
			list = append(list, http.MethodHead)
		}
	}
	slices.Sort(list)
	return strings.Join(append(list, http.MethodOptions), ", ")
}

// identify reads the keys of the objects that the path names.
func (rt *route) identify(r *Request) error {
	for i, res := range rt.objects {
		key, ok := res.key(r.PathValue(res.parameter()))
		if !ok {
			return errNotFound
		}
		r.SetPathValue(res.parameter(), key)
		if i == 0 {
			r.ID = key
		}
	}
	return nil
}

// key is the one spelling of an object's key. A number has no other; a UUID may come with large letters.
func (r *Resource) key(text string) (string, bool) {
	if r.Numbered {
		n, err := strconv.ParseInt(text, 10, 32)
		return text, err == nil && n >= 0 && text == strconv.FormatInt(n, 10)
	}
	id, err := uuid.Parse(text)
	return id.String(), err == nil && len(text) == 36
}

// send writes a reply.
func (rt *route) send(w http.ResponseWriter, hr *http.Request, reply Reply, fields selection) {
	h := w.Header()
	maps.Copy(h, reply.Header)
	body := reply.raw
	if reply.Body != nil {
		if reply.Status >= 300 || hr.Method != http.MethodGet && hr.Method != http.MethodHead || rt.resource.Whole {
			fields = selection{}
		}
		var err error
		if body, err = encode(reply.Body, fields); err != nil {
			rt.server.cfg.Log.Error("reply cannot be encoded", "path", hr.URL.Path, "err", err)
			reply.Status, body = http.StatusInternalServerError, []byte(`{"detail":"A server error occurred."}`)
		}
		h.Set("Content-Type", "application/json")
	}
	if reply.Status != http.StatusNoContent {
		h.Set("Content-Length", strconv.Itoa(len(body)))
	}
	w.WriteHeader(reply.Status)
	if hr.Method != http.MethodHead {
		_, _ = w.Write(body)
	}
}

// encode writes a reply's body; in a page the fields are those of its results.
func encode(body any, fields selection) (json.RawMessage, error) {
	if p, ok := body.(paged); ok {
		return p.encode(fields)
	}
	return fields.project(body)
}

// acceptsJSON reports whether a client takes JSON, or the HTML of Pulp's browsable API, instead of which it gets JSON.
func acceptsJSON(accept string) bool {
	if strings.TrimSpace(accept) == "" {
		return true
	}
	for part := range strings.SplitSeq(accept, ",") {
		kind, _, err := mime.ParseMediaType(part)
		if err == nil && slices.Contains([]string{"*/*", "application/*", "application/json", "text/html", "text/*"}, kind) {
			return true
		}
	}
	return false
}

// unreachable reports whether an error says that the database is away, not that a statement is wrong.
func unreachable(err error) bool {
	return errors.Is(err, context.DeadlineExceeded) || resend.Passing(err)
}
