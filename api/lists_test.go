package api_test

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/pithworks/pith/api"
	"github.com/pithworks/pith/tasking"
)

// newNumbered dispatches n tasks, whose correlation ids are t1, t2 and so on.
func newNumbered(h *harness, n int) {
	h.t.Helper()
	for i := range n {
		h.dispatch("dummy_task", nil, tasking.Options{CorrelationID: fmt.Sprint("t", i+1)})
	}
}

// part is a page of a list. Next and Previous are queries, without what the pages of the same list have in common.
type part struct {
	Count          int
	Next, Previous string
	Names          []string
}

// none stands for the link of a page that has no neighbor.
const none = "none"

// partOf reads a page, whose links must keep the other parameters.
func (h *harness) partOf(path, query, key string) part {
	h.t.Helper()
	var page struct {
		Count          int
		Next, Previous *string
	}
	got := h.want(get(path+"?"+query), http.StatusOK, nil)
	h.get(path+"?"+query, &page)
	link := func(to *string) string {
		if to == nil {
			return none
		}
		base, rest, _ := strings.Cut(*to, "?")
		if base != h.http.URL+root+path {
			h.t.Errorf("%s?%s: the link %s is elsewhere", path, query, *to)
		}
		linked, err := url.ParseQuery(rest)
		if err != nil {
			h.t.Error(err)
		}
		asked, err := url.ParseQuery(query)
		if err != nil {
			h.t.Fatal(err)
		}
		window := url.Values{}
		for _, name := range []string{"limit", "offset"} {
			if linked.Has(name) {
				window[name] = linked[name]
			}
			delete(asked, name)
			delete(linked, name)
		}
		if diff := gocmp.Diff(asked, linked); diff != "" {
			h.t.Errorf("%s?%s: other parameters (-want +got):\n%s", path, query, diff)
		}
		return window.Encode()
	}
	return part{page.Count, link(page.Next), link(page.Previous), names(h.t, got.body, key)}
}

func TestPagesTellWhereTheyStand(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	newNumbered(h, 5)
	all := []string{"t5", "t4", "t3", "t2", "t1"}
	for query, want := range map[string]part{
		"":                                   {5, none, none, all},
		"limit=2":                            {5, "limit=2&offset=2", none, all[:2]},
		"limit=2&offset=0":                   {5, "limit=2&offset=2", none, all[:2]},
		"limit=2&offset=1":                   {5, "limit=2&offset=3", "limit=2", all[1:3]},
		"limit=2&offset=2":                   {5, "limit=2&offset=4", "limit=2", all[2:4]},
		"limit=2&offset=3":                   {5, none, "limit=2&offset=1", all[3:]},
		"limit=2&offset=4":                   {5, none, "limit=2&offset=2", all[4:]},
		"limit=5":                            {5, none, none, all},
		"limit=6":                            {5, none, none, all},
		"limit=5&offset=5":                   {5, none, "limit=5", []string{}},
		"limit=2&offset=100":                 {5, none, "limit=2&offset=98", []string{}},
		"limit=1&limit=2":                    {5, "limit=2&offset=2", none, all[:2]},
		"offset=1":                           {5, none, "limit=100", all[1:]},
		"page_size=2":                        {5, none, none, all},
		"limit=10001&offset=1":               {5, none, "limit=10000", all[1:]},
		"limit=2&offset=2&state=waiting":     {5, "limit=2&offset=4", "limit=2", all[2:4]},
		"limit=1&name__in=a%2Cb":             {0, none, none, []string{}},
		"limit=1&offset=3&name__in=a%2Cb":    {0, none, "limit=1&offset=2", []string{}},
		"limit=1&offset=9223372036854775807": {5, none, "limit=1&offset=2147483646", []string{}},
		"limit=2&offset=1&fields=logging_cid%2Cname&q=NOT%20name%3D%22%26%22&exclude_fields=name&exclude_fields=prn": {5, "limit=2&offset=3", "limit=2", all[1:3]},
		"limit=1&ordering=logging_cid&logging_cid__contains=t":                                                       {5, "limit=1&offset=1", none, []string{"t1"}},
	} {
		if diff := gocmp.Diff(want, h.partOf("tasks/", query, "logging_cid")); diff != "" {
			t.Errorf("%s (-want +got):\n%s", query, diff)
		}
	}
	for _, bad := range []string{"0", "-1", "x", "", "1.5", "99999999999999999999", "null"} {
		for _, query := range []string{"limit=" + bad, "limit=3&offset=" + bad} {
			want := all
			if strings.Contains(query, "offset") {
				want = all[:3]
			}
			if got := h.partOf("tasks/", query, "logging_cid"); !slices.Equal(got.Names, want) || got.Count != 5 {
				t.Errorf("%s: %+v", query, got)
			}
		}
	}
}

func TestPagesOfAllListsTellWhereTheyStand(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	for i := range 3 {
		name := fmt.Sprint("n", i+1)
		h.newGroup(name)
		h.schedule(name)
		h.register(name)
		h.addUser(name, false)
	}
	for path, key := range map[string]string{"task-groups/": "description", "task-schedules/": "name", "workers/": "name", "users/": "username"} {
		all := []string{"n3", "n2", "n1"}
		if path == "users/" {
			all = append(all, "admin")
		}
		for query, want := range map[string]part{
			"":                   {len(all), none, none, all},
			"limit=2":            {len(all), "limit=2&offset=2", none, all[:2]},
			"limit=2&offset=2":   {len(all), none, "limit=2", all[2:]},
			"limit=3&offset=100": {len(all), none, "limit=3&offset=97", []string{}},
			"limit=1&minimal=1":  {len(all), "limit=1&offset=1", none, all[:1]},
			"page_size=1":        {len(all), none, none, all},
		} {
			if diff := gocmp.Diff(want, h.partOf(path, query, key)); diff != "" {
				t.Errorf("%s?%s (-want +got):\n%s", path, query, diff)
			}
		}
		if slices.ContainsFunc(parametersOf(h, path), func(p parameter) bool { return p.Name == "page_size" }) {
			t.Errorf("%s: the document tells of a parameter that does nothing", path)
		}
	}
}

func TestLinksHaveTheSchemeOfTheProxyThatIsTrusted(t *testing.T) {
	t.Parallel()
	for _, trust := range []bool{false, true} {
		h := newHarness(t, func(c *api.Config) { c.TrustProxy = trust })
		newNumbered(h, 2)
		for header, want := range map[string]string{"https": "https", "http": "http", "": "http", "javascript": "http"} {
			if !trust {
				want = "http"
			}
			var page struct{ Next string }
			h.want(get("tasks/?limit=1").with("X-Forwarded-Proto", header), http.StatusOK, &page)
			if !strings.HasPrefix(page.Next, want+"://"+strings.TrimPrefix(h.http.URL, "http://")+"/") {
				t.Errorf("trusted %t, %q: %s", trust, header, page.Next)
			}
		}
	}
}

// parameter is one of a list's query, as the OpenAPI document tells it.
type parameter struct {
	Name, In string
	Schema   struct{ Items struct{ Enum []string } }
}

func parametersOf(h *harness, path string) []parameter {
	h.t.Helper()
	var doc struct {
		Paths map[string]struct {
			Get struct{ Parameters []parameter }
		}
	}
	h.get("docs/api.json", &doc)
	list := slices.DeleteFunc(doc.Paths[root+path].Get.Parameters, func(p parameter) bool { return p.In != "query" })
	if len(list) == 0 {
		h.t.Fatalf("the document tells of no parameters of %s", path)
	}
	return list
}

// compare orders the values of a field as PostgreSQL does: null is the greatest.
func compare(a, b any) int {
	switch a := a.(type) {
	case nil:
		if b == nil {
			return 0
		}
		return 1
	case float64:
		b, ok := b.(float64)
		if !ok {
			return -1
		}
		return cmp.Compare(a, b)
	case string:
		b, ok := b.(string)
		if !ok {
			return -1
		}
		return cmp.Compare(a, b)
	}
	return cmp.Compare(fmt.Sprint(a), fmt.Sprint(b)) // false is less than true
}

// untold are orders by what replies do not tell, or tell as a structure whose order is PostgreSQL's.
var untold = []string{"immediate", "deferred", "versions", "profile_options", "error", "result", "reserved_resources_record", "app_type", "ttl"}

func TestListsAreOrderedByEveryNameThatTheyOffer(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	newTaskScene(h)
	newWorkers(h)
	for i, name := range []string{"b", "c", "a"} {
		h.schedule(name)
		h.exec("UPDATE task_schedule SET next_dispatch = CASE WHEN $2::int > 0 THEN now() - make_interval(days => $2::int) END WHERE name = $1", name, i)
		h.addUser(name, false)
	}
	h.exec("UPDATE auth_user SET is_active = false, email = 'x' WHERE username = 'c'")
	for _, path := range []string{"tasks/", "workers/", "task-schedules/", "users/"} {
		var newest struct{ Results []map[string]any }
		h.get(path, &newest)
		offered := 0
		for _, p := range parametersOf(h, path) {
			if p.Name != "ordering" {
				continue
			}
			for _, order := range p.Schema.Items.Enum {
				offered++
				name, descending := strings.CutPrefix(order, "-")
				if slices.Contains(untold, name) {
					if n := len(hrefs(newest.Results)); len(names(t, h.want(request{path: path + "?ordering=" + order}, http.StatusOK, nil).body, "pulp_href")) != n {
						t.Errorf("%s by %s has not %d results", path, order, n)
					}
					continue
				}
				field := name
				if name == "pk" || name == "pulp_id" {
					field = "pulp_href"
				}
				if path == "users/" && name == "pk" {
					field = "id"
				}
				want := slices.Clone(newest.Results)
				slices.SortStableFunc(want, func(a, b map[string]any) int {
					if _, ok := a[field]; !ok {
						t.Errorf("%s is ordered by %s, which objects have not", path, order)
					}
					if descending {
						return compare(b[field], a[field])
					}
					return compare(a[field], b[field])
				})
				var got struct{ Results []map[string]any }
				h.get(path+"?ordering="+order, &got)
				if diff := gocmp.Diff(hrefs(want), hrefs(got.Results)); diff != "" {
					t.Errorf("%s by %s (-want +got):\n%s", path, order, diff)
				}
			}
		}
		if offered < 10 {
			t.Errorf("%s offers %d orders", path, offered)
		}
	}
	var got struct{ Results []map[string]any }
	h.get("tasks/?ordering=-name,%20state,,name&fields=name,state", &got)
	sortedBoth := slices.IsSortedFunc(got.Results, func(a, b map[string]any) int {
		return cmp.Or(compare(b["name"], a["name"]), compare(a["state"], b["state"]))
	})
	if !sortedBoth || len(got.Results) < 5 {
		t.Errorf("by name and state: %v", got.Results)
	}
}

func hrefs(list []map[string]any) []string {
	out := []string{}
	for _, o := range list {
		href, _ := o["pulp_href"].(string)
		out = append(out, href)
	}
	return out
}

func TestListsAreNewestFirst(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	newTaskScene(h)
	newWorkers(h)
	for _, name := range []string{"b", "c", "a"} {
		h.schedule(name)
	}
	for _, path := range []string{"tasks/", "workers/", "task-schedules/"} {
		var list struct {
			Results []struct {
				Created time.Time `json:"pulp_created"`
			}
		}
		h.get(path, &list)
		for i := range list.Results[1:] {
			if !list.Results[i].Created.After(list.Results[i+1].Created) {
				t.Errorf("%s: %s comes before %s", path, list.Results[i].Created, list.Results[i+1].Created)
			}
		}
	}
}

// asked is the query of a list and what it finds.
type asked struct{ query, want string }

// finds checks what a list finds, by the values of key, and what it counts; each parameter that the list offers must have
// been asked for. Values in braces are replaced.
func (h *harness) finds(path, key string, values map[string]string, all []asked) {
	h.t.Helper()
	pairs := []string{}
	for name, value := range values {
		pairs = append(pairs, "{"+name+"}", value)
	}
	replacer := strings.NewReplacer(pairs...)
	offered := map[string]bool{}
	for _, p := range parametersOf(h, path) {
		offered[p.Name] = true
	}
	for _, name := range []string{"limit", "offset", "fields", "exclude_fields", "minimal", "ordering"} {
		delete(offered, name)
	}
	for _, a := range all {
		query := url.Values{}
		for part := range strings.SplitSeq(a.query, "&") {
			if name, value, ok := strings.Cut(part, "="); ok {
				query.Add(name, replacer.Replace(value))
				delete(offered, name)
			}
		}
		want := strings.Fields(a.want)
		got := h.partOf(path, query.Encode(), key)
		if diff := gocmp.Diff(sorted(want), sorted(got.Names)); diff != "" {
			h.t.Errorf("%s?%s (-want +got):\n%s", path, a.query, diff)
		}
		query.Set("limit", "1")
		if first := h.partOf(path, query.Encode(), key); first.Count != len(want) || got.Count != len(want) {
			h.t.Errorf("%s?%s: count %d, of a full page %d, want %d", path, a.query, got.Count, first.Count, len(want))
		}
	}
	if len(offered) > 0 {
		h.t.Errorf("%s: nobody asks for %v", path, slices.Sorted(maps.Keys(offered)))
	}
}

func TestPageEndsWhereTasksBecomeLarge(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	var want []string
	for range 5 {
		_, href := h.dispatch("dummy_task", nil, tasking.Options{})
		want = append(want, href)
	}
	slices.Reverse(want)
	h.exec(`UPDATE task SET state = 'completed', finished_at = now(), result = to_json(repeat('x', 6 << 20))`)
	var got []string
	var lengths []int
	for path := "tasks/?fields=pulp_href&limit=4"; ; {
		var page struct {
			Count   int
			Next    *string
			Results []struct {
				PulpHref string `json:"pulp_href"`
			}
		}
		h.get(path, &page)
		if page.Count != len(want) {
			t.Errorf("count is %d", page.Count)
		}
		for _, task := range page.Results {
			got = append(got, task.PulpHref)
		}
		lengths = append(lengths, len(page.Results))
		if page.Next == nil || len(lengths) > len(want) {
			break
		}
		path = strings.TrimPrefix(*page.Next, h.http.URL)
	}
	if !slices.Equal(got, want) || !slices.Equal(lengths, []int{2, 2, 1}) {
		t.Errorf("pages of %v tasks: %q, want %q", lengths, got, want)
	}
	// One that is larger than a page has a page of its own.
	h.exec(`UPDATE task SET result = to_json(repeat('x', 17 << 20)) WHERE id = $1`, uuid.MustParse(keyIn(want[0])))
	var page struct{ Results []json.RawMessage }
	h.get("tasks/?fields=pulp_href", &page)
	if len(page.Results) != 1 {
		t.Errorf("%d tasks with one that is too large", len(page.Results))
	}
}
