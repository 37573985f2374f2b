package api_test

import (
	"bytes"
	"compress/gzip"
	"io"
	"net/http"
	"net/url"
	"runtime/pprof"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pithworks/pith/api"
	"github.com/pithworks/pith/tasking"
)

// profiled has a task dispatched with a wish for profiles, and answers its href.
func (h *harness) profiled(wish, body string) string {
	h.t.Helper()
	return h.accepted(request{path: pithRoot + "tasks/", header: http.Header{"X-Task-Diagnostics": {wish}}, body: body})
}

// profiles are the links to the profiles of a task, by name, below the server's address.
func (h *harness) profiles(href string) map[string]string {
	h.t.Helper()
	var reply struct{ URLs map[string]string }
	h.get(href+"profile_artifacts/", &reply)
	links := map[string]string{}
	for name, link := range reply.URLs {
		path, ok := strings.CutPrefix(link, h.http.URL+"/")
		if !ok {
			h.t.Errorf("%s is at %s", name, link)
		}
		links[name] = "/" + path
	}
	return links
}

// wantProfiles checks which profiles were made of a task, and that each can be read without credentials.
func (h *harness) wantProfiles(what, href string, want ...string) {
	h.t.Helper()
	links, got := h.profiles(href), []string{}
	for name, link := range links {
		got = append(got, name)
		r := h.want(request{path: link, user: "-"}, http.StatusOK, nil)
		if kind := r.header.Get("Content-Type"); kind != "application/octet-stream" {
			h.t.Errorf("%s of %s has the type %s", name, what, kind)
		}
		switch name {
		case "memory_profile":
			lines := strings.Split(strings.TrimSpace(string(r.body)), "\n")
			if lines[0] != "# seconds\tresident bytes\tbytes of Go's heap" || len(lines) < 3 || len(strings.Split(lines[1], "\t")) != 3 {
				h.t.Errorf("%s of %s:\n%s", name, what, r.body)
			}
		default: // pprof's: compressed
			in, err := gzip.NewReader(bytes.NewReader(r.body))
			if err != nil {
				h.t.Errorf("%s of %s: %v", name, what, err)
				continue
			}
			if data, err := io.ReadAll(in); err != nil || len(data) == 0 {
				h.t.Errorf("%s of %s: %d bytes, %v", name, what, len(data), err)
			}
		}
	}
	if diff := cmp.Diff(sorted(want), sorted(got)); diff != "" {
		h.t.Errorf("profiles of %s (-want +got):\n%s", what, diff)
	}
}

// drainWithout runs a worker that makes no profiles until nothing is left to do.
func (h *harness) drainWithout() {
	h.t.Helper()
	client := h.client
	defer func() { h.client = client }()
	var err error
	if h.client, err = tasking.New(h.db.Pool, tasking.Config{Registry: client.Registry(), Log: h.db.Log}); err != nil {
		h.t.Fatal(err)
	}
	h.drain()
}

const (
	shortSleep = `{"name": "` + testModule + `sleep", "args": {"interval": 0.01}}`
	shortGooey = `{"name": "` + testModule + `gooey_task", "args": {"interval": 0.01}}`
)

// TestTaskIsProfiledInTheProcessThatRunsIt is the one test here that profiles the processor's time, which but one can do at
// a time in a process.
func TestTaskIsProfiledInTheProcessThatRunsIt(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	here := h.profiled("memory, cpu,pyinstrument,heap,memory,logs", shortSleep)
	h.drain()
	h.wantProfiles("a task", here, "memory_profile", "cpu_profile", "heap_profile")

	if err := pprof.StartCPUProfile(io.Discard); err != nil {
		t.Fatal(err)
	}
	defer pprof.StopCPUProfile()
	here, apart := h.profiled("cpu,heap", shortSleep), h.profiled("memory,cpu,heap", shortGooey)
	h.drain()
	h.wantProfiles("a task while another one is profiled", here, "heap_profile")
	h.wantProfiles("a task in a process of its own meanwhile", apart, "memory_profile", "cpu_profile", "heap_profile")
	for _, href := range []string{here, apart} {
		if got := h.ended(href); got.State != "completed" {
			t.Errorf("%s is %s, %v", href, got.State, got.Error)
		}
	}
}

func TestOnlyWishesThatTheWorkerGrantsAreProfiled(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	for wish, want := range map[string][]string{
		"": nil, "memray": nil, "memory": {"memory_profile"}, "heap ,memory": {"memory_profile", "heap_profile"}, "Memory": nil,
	} {
		task := h.profiled(wish, shortSleep)
		h.drain()
		h.wantProfiles(strconv.Quote(wish), task, want...)
	}
	here, apart := h.profiled("memory,heap", shortSleep), h.profiled("memory,heap", shortGooey)
	h.drainWithout()
	h.wantProfiles("a task of a worker that makes none", here)
	h.wantProfiles("an isolated one of a worker that makes none", apart)
}

func TestChildrenInheritTheWishForProfiles(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	for wish, want := range map[string][]string{"memory": {"memory_profile"}, "": nil} {
		group, err := h.client.NewGroup(t.Context(), "a family")
		if err != nil {
			t.Fatal(err)
		}
		parent := h.profiled(wish, `{"name": "`+testModule+`dummy_group_task", "args": {"inbetween": 0, "intervals": [0, 0]}, "task_group": "prn:core.taskgroup:`+group.String()+`"}`)
		h.drain()
		task := h.ended(parent)
		if task.State != "completed" || len(task.Children) != 2 {
			t.Fatalf("the parent is %+v", task)
		}
		for _, href := range append(task.Children, parent) {
			h.wantProfiles("one of a family with the wish "+strconv.Quote(wish), href, want...)
		}
	}
}

func TestImmediateTasksAreNeverProfiled(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	const body = `{"name": "` + testModule + `asleep", "args": {"interval": 0.01}, "immediate": true}`
	byWorker := h.profiled("memory,heap", body)
	h.drain()
	h.goOnline()
	here := h.profiled("memory,heap", body)
	for what, href := range map[string]string{"one in a worker": byWorker, "one in the server": here} {
		if got := h.ended(href); got.State != "completed" {
			t.Errorf("%s is %s, %v", what, got.State, got.Error)
		}
		h.wantProfiles(what, href)
	}
}

func TestProfileIsReadByTheSignedLinkAlone(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	task, other := h.profiled("memory,heap", shortSleep), h.profiled("memory", shortSleep)
	h.drain()
	links := h.profiles(task)
	link, err := url.Parse(links["memory_profile"])
	if err != nil {
		t.Fatal(err)
	}
	sign := func(path string, until time.Time) string {
		expires := strconv.FormatInt(until.Unix(), 10)
		signature, err := h.server.Sign(t.Context(), path, expires)
		if err != nil {
			t.Fatal(err)
		}
		return path + "?" + url.Values{"expires": {expires}, "signature": {signature}}.Encode()
	}
	with := func(name, value string) string {
		query := link.Query()
		query.Set(name, value)
		return link.Path + "?" + query.Encode()
	}
	expires, err := strconv.ParseInt(link.Query().Get("expires"), 10, 64)
	if err != nil || time.Until(time.Unix(expires, 0)) > time.Hour || time.Until(time.Unix(expires, 0)) < 50*time.Minute {
		t.Errorf("it is good until %d, %v", expires, err)
	}
	signature := link.Query().Get("signature")
	for what, path := range map[string]string{
		"no signature":           link.Path,
		"an empty one":           with("signature", ""),
		"another one":            with("signature", strings.Repeat("0", len(signature))),
		"a shorter one":          with("signature", signature[:len(signature)-1]),
		"a later end":            with("expires", strconv.FormatInt(expires+1, 10)),
		"an end that is none":    with("expires", "never"),
		"an end that has passed": sign(link.Path, time.Now().Add(-time.Minute)),
		"another profile":        strings.Replace(link.Path, "memory", "heap", 1) + "?" + link.RawQuery,
		"another task":           strings.Replace(link.Path, keyIn(task), keyIn(other), 1) + "?" + link.RawQuery,
	} {
		for _, user := range []string{"-", "admin"} {
			got := h.send(request{path: path, user: user})
			if got.status != http.StatusForbidden || !bytes.Contains(got.body, []byte("ask for profile_artifacts again")) || bytes.Contains(got.body, []byte("resident")) {
				t.Errorf("with %s as %s: %d, %s", what, user, got.status, got.body)
			}
		}
	}
	inAnHour := time.Now().Add(time.Hour)
	h.want(request{path: sign(link.Path, inAnHour), user: "-"}, http.StatusOK, nil)
	for _, path := range []string{
		strings.Replace(link.Path, "memory", "cpu", 1), strings.Replace(link.Path, "memory_profile", "nothing", 1),
		strings.Replace(link.Path, keyIn(task), nowhere, 1), strings.Replace(strings.Replace(link.Path, "memory", "heap", 1), keyIn(task), keyIn(other), 1),
	} {
		h.answers(request{path: sign(path, inAnHour), user: "-"}, http.StatusNotFound, `{"detail": "No Profile matches the given query."}`)
	}
	// Another process of the same installation signs with the same key; what is deleted is gone with its profiles.
	h.serve(h.newClient, api.Config{})
	h.want(request{path: links["memory_profile"], user: "-"}, http.StatusOK, nil)
	h.want(request{method: http.MethodDelete, path: task}, http.StatusNoContent, nil)
	h.answers(request{path: links["memory_profile"], user: "-"}, http.StatusNotFound, `{"detail": "No Profile matches the given query."}`)
}

// The secret cannot be read while its table has another name.
func TestLinkThatCannotBeGoodAsksTheDatabaseNothing(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	h.exec("ALTER TABLE api_secret RENAME TO hidden")
	path, soon := pithRoot+"profiles/"+nowhere+"/memory_profile/", strconv.FormatInt(time.Now().Add(time.Minute).Unix(), 10)
	signature := strings.Repeat("0", 64)
	for _, query := range []string{
		"", "expires=never&signature=" + signature, "expires=1&signature=" + signature, "expires=" + soon, "expires=" + soon + "&signature=" + signature[1:],
		"expires=" + soon + "&signature=0" + signature,
	} {
		if got := h.send(get(path + "?" + query).by("-")); got.status != http.StatusForbidden {
			t.Errorf("%q: %d, %s", query, got.status, got.body)
		}
	}
	h.want(get(path+"?expires="+soon+"&signature="+signature).by("-"), http.StatusInternalServerError, nil)
}

func TestSecretOfLinksIsReadOnce(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	task := h.profiled("memory,heap", shortSleep)
	h.drain()
	h.exec("ALTER TABLE api_secret RENAME TO hidden")
	h.want(get(task+"profile_artifacts/"), http.StatusInternalServerError, nil) // that it could not be read is not kept
	h.exec("ALTER TABLE hidden RENAME TO api_secret")
	h.wantProfiles("a task", task, "memory_profile", "heap_profile")
	h.exec("ALTER TABLE api_secret RENAME TO hidden")
	h.wantProfiles("a task, without the secret", task, "memory_profile", "heap_profile")
}
