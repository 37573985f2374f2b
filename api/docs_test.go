package api_test

import (
	"context"
	"html"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pithworks/pith/api"
)

// mentioned are the addresses that a page mentions.
func mentioned(page string) (all []string) {
	for _, m := range regexp.MustCompile(`(?:src|href|data-document|action)="([^"]*)"`).FindAllStringSubmatch(page, -1) {
		all = append(all, m[1])
	}
	return all
}

func TestDocumentationPageTakesEverythingFromItsServer(t *testing.T) {
	t.Parallel()
	for _, at := range []string{"/pulp/", "/", "/a/hub/"} {
		s := api.Aloof(t, api.Config{Root: at})
		w := ask(t, s, http.MethodGet, at+"api/v3/docs/")
		if kind := w.Header().Get("Content-Type"); w.Code != http.StatusOK || kind != "text/html; charset=utf-8" || !strings.HasPrefix(w.Body.String(), "<!doctype html>") {
			t.Errorf("%s: %d, %s: %s", at, w.Code, kind, w.Body)
		}
		if kept := w.Header().Get("Cache-Control"); kept != "no-cache" {
			t.Errorf("%s: the page is kept: %s", at, kept)
		}
		policy := w.Header().Get("Content-Security-Policy")
		if !strings.Contains(policy, "default-src 'none'") || strings.Contains(policy, "http") || strings.Contains(policy, "script-src 'self' 'unsafe-inline'") {
			t.Errorf("%s: policy %q", at, policy)
		}
		var kinds []string
		for _, address := range mentioned(w.Body.String()) {
			address = html.UnescapeString(address)
			if address == "data:," {
				continue
			}
			got := ask(t, s, http.MethodGet, address)
			if got.Code != http.StatusOK || got.Body.Len() == 0 {
				t.Errorf("%s: %s: %d", at, address, got.Code)
			}
			// Browsers keep the document by its address, so that changes with it.
			info := value(t, ask(t, s, http.MethodGet, at+"api/v3/docs/api.json").Body.Bytes()).(object)["info"].(object)
			version := info["x-pulp-app-versions"].(object)["core"].(string)
			if address == at+"api/v3/docs/api.json?pk_path=1&version="+url.QueryEscape(version) && strings.Contains(version, "+pith.") {
				continue
			}
			if !strings.HasPrefix(address, at+"assets/") {
				t.Errorf("%s: the page mentions %s", at, address)
			}
			kinds = append(kinds, path.Ext(address)+" "+got.Header().Get("Content-Type"))
		}
		slices.Sort(kinds)
		if want := []string{".css text/css; charset=utf-8", ".js text/javascript; charset=utf-8", ".js text/javascript; charset=utf-8"}; !cmp.Equal(kinds, want) {
			t.Errorf("%s: files are %q", at, kinds)
		}
		if strings.Contains(w.Body.String(), "<script>") || strings.Contains(w.Body.String(), "onload=") {
			t.Errorf("%s: the page has a script that its policy forbids", at)
		}
	}
}

// TestNobodyMakesAServerKeepManyForms: there are as many as there are sets of components.
func TestNobodyMakesAServerKeepManyForms(t *testing.T) {
	t.Parallel()
	var cfg api.Config
	labels := []string{"core"}
	for _, label := range []string{"a", "b", "c"} {
		labels = append(labels, label)
		cfg.Components = append(cfg.Components, api.Component{Label: label, Version: "1.0", Resources: []*api.Resource{{
			Path: label + "/", Name: label, Key: label, Tag: label,
			Operations: []api.Operation{{
				Method: http.MethodGet, Verb: "read", Summary: "Read it.", Public: true, Replies: map[int]any{http.StatusOK: nil},
				Do: api.Bare(func(context.Context, *api.Request) (api.Reply, error) { return api.Reply{Status: http.StatusOK}, nil }),
			}},
		}}})
	}
	s := api.Aloof(t, cfg)
	for set := range 1 << len(labels) {
		var asked []string
		for i, label := range labels {
			if set&(1<<i) != 0 {
				asked = append(asked, label)
			}
		}
		query := url.Values{"component": asked, "bindings": {"1"}}.Encode()
		slices.Reverse(asked)
		for _, query := range []string{query, "bindings&component=" + strings.Join(asked, ",")} {
			paths := document(t, s, "?"+query)["paths"].(object)
			for _, label := range labels {
				path := map[string]string{"core": root + "status/"}[label]
				if path == "" {
					path = root + label + "/"
				}
				if want := len(asked) == 0 || slices.Contains(asked, label); (paths[path] != nil) != want {
					t.Errorf("%s: %s is there: %t", query, label, !want)
				}
			}
		}
	}
	if n := s.KeptForms(); n != 1+len(labels) {
		t.Errorf("%d forms are kept, want that of all %d components and those of each", n, len(labels))
	}
	for _, query := range []string{"", "?pk_path=1", "?pk_path=1&component=a"} {
		ask(t, s, http.MethodGet, root+"docs/api.json"+query)
		ask(t, s, http.MethodGet, root+"docs/api.yaml"+query)
	}
	if n := s.KeptForms(); n != 1+len(labels)+6 {
		t.Errorf("%d forms are kept, want 6 more", n)
	}
}

func TestOnlyFilesOfThePageAreServed(t *testing.T) {
	t.Parallel()
	s := api.Aloof(t, api.Config{})
	for _, name := range []string{"", "/", "LICENSE", "NOTICE", "nothing.js", "swagger-ui.css/", "../docs.go", "%2e%2e/docs.go", "swagger-ui-bundle.js.LICENSE.txt"} {
		if w := ask(t, s, http.MethodGet, "/pulp/assets/"+name); w.Code < 300 {
			t.Errorf("%q: %d", name, w.Code)
		}
	}
	if w := ask(t, s, http.MethodHead, "/pulp/assets/swagger-ui.css"); w.Code != http.StatusOK || w.Body.Len() != 0 || w.Header().Get("Content-Length") == "" {
		t.Errorf("HEAD: %d, %d bytes, %q", w.Code, w.Body.Len(), w.Header())
	}
	if w := ask(t, s, http.MethodPost, "/pulp/assets/swagger-ui.css"); w.Code != http.StatusMethodNotAllowed || w.Header().Get("Allow") != "GET, HEAD" {
		t.Errorf("POST: %d, Allow %q", w.Code, w.Header().Get("Allow"))
	}
}

func TestStaticFilesAreCollectedAsTheyAreServed(t *testing.T) {
	t.Parallel()
	s, dir := api.Aloof(t, api.Config{}), filepath.Join(t.TempDir(), "not", "yet")
	for range 2 { // the second time they are there
		if err := api.CollectStatic(dir); err != nil {
			t.Fatal(err)
		}
	}
	collected := map[string]bool{}
	err := fs.WalkDir(os.DirFS(dir), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		collected[name] = true
		data, err := os.ReadFile(filepath.Join(dir, name))
		if w := ask(t, s, http.MethodGet, "/pulp/assets/"+name); w.Code == http.StatusOK && w.Body.String() != string(data) {
			t.Errorf("%s is collected and served differently", name)
		} else if served := path.Ext(name) == ".js" || path.Ext(name) == ".css"; served != (w.Code == http.StatusOK) {
			t.Errorf("%s is served with %d", name, w.Code)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, address := range mentioned(ask(t, s, http.MethodGet, root+"docs/").Body.String()) {
		if name, ok := strings.CutPrefix(address, "/pulp/assets/"); ok && !collected[name] {
			t.Errorf("%s is not collected", name)
		}
	}
	if !collected["LICENSE"] || !collected["NOTICE"] {
		t.Errorf("the license is not collected with what it is of: %v", collected)
	}
	blocked := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(blocked, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := api.CollectStatic(blocked); err == nil {
		t.Error("a file is taken for a directory")
	}
}
