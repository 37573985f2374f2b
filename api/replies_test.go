package api_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"testing"

	"github.com/pithworks/pith/api"
	"github.com/pithworks/pith/internal/dbtest"
)

// answering is a component of one operation, at things/, that declares these replies.
func answering(replies map[int]any, do func(context.Context, *api.Request) (api.Reply, error)) api.Component {
	return api.Component{Label: "things", Version: "1.0", Resources: []*api.Resource{{
		Path: "things/", Name: "things", Key: "thing", Tag: "Things",
		Operations: []api.Operation{{Method: http.MethodGet, Verb: "do", Summary: "Do it.", Public: true, Replies: replies, Do: api.Bare(do)}},
	}}}
}

func TestErrorsOfAComponentAreToldOrLogged(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		err    error
		status int
		body   string
		logged string // "": nothing
	}{
		{"fields", api.FieldErrors{"name": []string{"Taken."}}, 400, `{"name":["Taken."]}`, ""},
		{"fields, wrapped", fmt.Errorf("create: %w", api.FieldErrors{"name": []string{"Taken."}}), 400, `{"name":["Taken."]}`, ""},
		{"not found", api.NotFound("Thing"), 404, `{"detail":"No Thing matches the given query."}`, ""},
		{"a problem", &api.ResponseError{Status: 409, Body: []string{"Busy."}, Header: http.Header{"Retry-After": {"1"}}}, 409, `["Busy."]`, ""},
		{"any other", errors.New("secret"), 500, `{"detail":"A server error occurred."}`, "secret"},
		{"out of time", fmt.Errorf("read: %w", context.DeadlineExceeded), 503, `{"detail":"The database cannot be reached at the moment."}`, "deadline"},
		{"a panic", nil, 500, `{"detail":"A server error occurred."}`, "request panicked"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			log := &dbtest.Output{}
			warnings := slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelWarn}))
			s := api.Aloof(t, api.Config{Log: warnings, Components: []api.Component{
				answering(map[int]any{http.StatusOK: thingReply{}}, func(context.Context, *api.Request) (api.Reply, error) {
					if tt.err == nil {
						panic("oh no")
					}
					return api.Reply{}, tt.err
				}),
			}})
			w := ask(t, s, http.MethodGet, root+"things/")
			if w.Code != tt.status || w.Body.String() != tt.body || w.Header().Get("Content-Type") != "application/json" {
				t.Errorf("answered %d, %s: %s", w.Code, w.Header().Get("Content-Type"), w.Body)
			}
			if (tt.logged == "") != (log.String() == "") || !strings.Contains(log.String(), tt.logged) {
				t.Errorf("logged: %s", log)
			}
			if again := w.Header().Get("Retry-After"); (again != "") != (tt.status == http.StatusConflict) {
				t.Errorf("Retry-After is %q", again)
			}
		})
	}
}

func TestReplyThatIsNotDeclaredIsAnErrorOfTheServer(t *testing.T) {
	t.Parallel()
	declared := map[int]any{http.StatusOK: thingReply{}, http.StatusAccepted: api.AsyncOperationReply{}, http.StatusNoContent: nil}
	for name, reply := range map[string]api.Reply{
		"another status":             {Status: http.StatusCreated, Body: thingReply{}},
		"another type":               {Status: http.StatusOK, Body: thingVersionReply{}},
		"the type of another status": {Status: http.StatusOK, Body: api.AsyncOperationReply{}},
		"a pointer to the type":      {Status: http.StatusOK, Body: &thingReply{}},
		"a body where none is":       {Status: http.StatusNoContent, Body: thingReply{}},
		"no body where one is":       {Status: http.StatusOK},
		"nothing":                    {},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			log := &dbtest.Output{}
			warnings := slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelWarn}))
			s := api.Aloof(t, api.Config{Log: warnings, Components: []api.Component{
				answering(declared, func(context.Context, *api.Request) (api.Reply, error) { return reply, nil }),
			}})
			w := ask(t, s, http.MethodGet, root+"things/")
			if w.Code != http.StatusInternalServerError || w.Body.String() != `{"detail":"A server error occurred."}` {
				t.Errorf("answered %d: %s", w.Code, w.Body)
			}
			if !strings.Contains(log.String(), "the operation do does not declare a reply") {
				t.Errorf("logged: %s", log)
			}
		})
	}
	for _, reply := range []api.Reply{{Status: http.StatusOK, Body: thingReply{}}, {Status: http.StatusAccepted, Body: api.AsyncOperationReply{}}, {Status: http.StatusNoContent}} {
		s := api.Aloof(t, api.Config{Components: []api.Component{
			answering(declared, func(context.Context, *api.Request) (api.Reply, error) { return reply, nil }),
		}})
		if w := ask(t, s, http.MethodGet, root+"things/"); w.Code != reply.Status {
			t.Errorf("%d is answered as %d: %s", reply.Status, w.Code, w.Body)
		}
	}
}
