package api_test

import (
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pithworks/pith/tasking"
)

func TestListsWithoutFiltersIgnoreParameters(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	newScene(h)
	for _, query := range []string{"foo=1", "ordering=foo", "q=((", "state=bogus", "name=%00"} {
		for path, want := range map[string]int{"task-groups/": 2} {
			var page struct{ Count int }
			h.get(path+"?"+query, &page)
			if page.Count != want {
				t.Errorf("%s?%s lists %d, want %d", path, query, page.Count, want)
			}
		}
	}
	h.get("status/?foo=1", nil)
}

func TestMissingSlashIsRedirectedWhateverTheMethod(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	for _, path := range []string{"tasks", "tasks/" + nowhere, "tasks/x", "tasks/purge", "tasks/a%20b", "status", "users/1/roles"} {
		for _, method := range []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"} {
			for _, query := range []string{"", "?limit=1&name=a%2Cb"} {
				got := h.send(request{method: method, path: path + query, user: "-"})
				if want := root + path + "/" + query; got.status != http.StatusMovedPermanently || got.header.Get("Location") != want || len(got.body) > 0 {
					t.Errorf("%s %s: %d to %q with %q", method, path+query, got.status, got.header.Get("Location"), got.body)
				}
			}
		}
	}
}

func TestNobodyIsSentToAnotherHost(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	for _, path := range []string{
		"//evil.example/..", "//evil.example/../pulp/..", "/%2Fevil.example/..", "//evil.example%2F..", "/\\evil.example/..", "//", "/.", "/pulp/..", "/pulp/.", "/pulp/x/..",
	} {
		for _, last := range []string{"", "/"} {
			for _, method := range []string{"GET", "POST"} {
				got := h.send(request{method: method, path: path + root + "tasks" + last})
				to := got.header.Get("Location")
				if got.status != http.StatusNotFound && got.status != http.StatusTemporaryRedirect || to != "" && (to[0] != '/' || strings.ContainsAny(to[1:2], `/\\`)) {
					t.Errorf("%s %s%stasks%s: %d to %q", method, path, root, last, got.status, to)
				}
			}
		}
	}
}

func TestUnknownPathsAreAPageThatSaysNotFound(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	for _, path := range []string{
		"/", "/pulp", "/pulp/", "/nowhere", "/nowhere/", root + "nowhere/", root + "nowhere", root + "tasks/" + nowhere + "/nowhere/", root + "docs/api.json/",
		root + "docs/api.xml", "/pulp/api/v4/tasks/", root + "artifacts/",
	} {
		for _, method := range []string{"GET", "POST"} {
			got := h.send(request{method: method, path: path})
			if got.status != http.StatusNotFound || got.header.Get("Content-Type") != "text/html; charset=utf-8" ||
				!strings.Contains(string(got.body), "<h1>Not Found</h1><p>The requested resource was not found on this server.</p>") {
				t.Errorf("%s %s: %d %s", method, path, got.status, got.body)
			}
		}
	}
}

func TestClientsMayAcceptJSONOrPages(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	for _, accept := range []string{"", "*/*", "application/json", "application/*", "text/html", "image/png, application/json;q=0.1", " text/html;level=1 , */*;q=0.8"} {
		got := h.send(get("tasks/").with("Accept", accept))
		if got.status != http.StatusOK || got.header.Get("Content-Type") != "application/json" || got.header.Get("Vary") != "Accept" {
			t.Errorf("%q: %d %v %s", accept, got.status, got.header, got.body)
		}
	}
	for path, kind := range map[string]string{"livez/": "", "docs/": "text/html; charset=utf-8", "docs/api.json": "application/vnd.oai.openapi+json"} {
		if got := h.send(get(path).with("Accept", "image/png")); got.status != http.StatusOK || got.header.Get("Content-Type") != kind {
			t.Errorf("%s: %d %v", path, got.status, got.header)
		}
	}
}

func TestRepliesVaryByWhatTheClientAccepts(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	for _, r := range []request{
		get(""), get("status/"), get("livez/"), get("tasks/"), get("tasks/x/"), get("tasks/").by("-"), get("status/").with("Accept", "image/png"),
		post("status/", "{}"), post("tasks/purge/", "{"), get("docs/"), get("docs/api.json?component=x"),
	} {
		got := h.send(r)
		if vary := got.header.Values("Vary"); !slices.Equal(vary, []string{"Accept"}) {
			t.Errorf("%s %s: %d varies by %q", r.method, r.path, got.status, vary)
		}
	}
}

func TestHeadIsGetWithoutABody(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	_, task := h.dispatch("dummy_task", nil, tasking.Options{})
	for _, path := range []string{"", "tasks/", task, task + "?fields=state", "status/", "users/1/", "tasks/" + nowhere + "/"} {
		full, head := h.send(get(path)), h.send(send(http.MethodHead, path, nil))
		for _, header := range []http.Header{full.header, head.header} {
			header.Del("Date")
			header.Del("Correlation-Id")
		}
		if head.status != full.status || len(head.body) > 0 {
			t.Errorf("%s: %d with %q, want %d", path, head.status, head.body, full.status)
		}
		if diff := cmp.Diff(full.header, head.header); diff != "" {
			t.Errorf("%s: header (-get +head):\n%s", path, diff)
		}
	}
}

func TestRepliesHaveTheHeadersOfAllReplies(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	for _, path := range []string{"tasks/", "status/", "tasks", "nowhere/", "tasks/x/", "livez/"} {
		got := h.send(get(path))
		for name, want := range map[string]string{
			"X-Frame-Options": "DENY", "X-Content-Type-Options": "nosniff", "Referrer-Policy": "same-origin",
			"Cross-Origin-Opener-Policy": "same-origin", "Access-Control-Expose-Headers": "Correlation-ID",
		} {
			if text := got.header.Get(name); text != want {
				t.Errorf("%s: %s is %q, want %q", path, name, text, want)
			}
		}
	}
}

func TestRootListsCollectionsThatAreThere(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	var all map[string]string
	h.want(get("").by("-"), http.StatusOK, &all)
	for _, name := range []string{"tasks", "task-groups", "task-schedules", "workers", "users"} {
		if all[name] != h.http.URL+root+name+"/" {
			t.Errorf("%s is at %q", name, all[name])
		}
	}
	for name, url := range all {
		path, ok := strings.CutPrefix(url, h.http.URL)
		if got := h.send(get(path)); !ok || got.status != http.StatusOK {
			t.Errorf("%s at %s: %d", name, url, got.status)
		}
	}
}
