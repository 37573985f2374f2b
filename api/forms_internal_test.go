package api

import (
	"bytes"
	"encoding/json"
	"math"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pithworks/pith/tasking"
)

func TestCollectionsAreDeclaredWell(t *testing.T) {
	t.Parallel()
	lists := 0
	for _, res := range Aloof(t, Config{}).resources() {
		for _, o := range res.Operations {
			if o.Collection == nil {
				continue
			}
			lists++
			if err := o.Collection.Filters.Validate(); err != nil {
				t.Errorf("%s: %v", res.Path, err)
			}
			for _, p := range o.Collection.Filters.Parameters() {
				if slices.Contains(general, p.Name) {
					t.Errorf("%s: the filter %s is a parameter of all lists", res.Path, p.Name)
				}
			}
		}
	}
	if lists < 5 {
		t.Errorf("there are %d lists", lists)
	}
}

// pair is a member of a JSON object.
type pair struct {
	Name  string
	Value string
}

// pairs are the members of a JSON object, in their order.
func pairs(t testing.TB, text []byte) []pair {
	t.Helper()
	in := json.NewDecoder(bytes.NewReader(text))
	if _, err := in.Token(); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	list := []pair{}
	for in.More() {
		name, err := in.Token()
		var value json.RawMessage
		if err == nil {
			err = in.Decode(&value)
		}
		if err != nil {
			t.Fatalf("%v: %s", err, text)
		}
		list = append(list, pair{name.(string), string(value)})
	}
	return list
}

// sampleTask is a task with a value in each field.
func sampleTask() taskReply {
	at := Time{time.Date(2024, 5, 1, 10, 11, 12, 123456000, time.UTC)}
	result := json.RawMessage(`{"b":"<&>","a":1}`)
	return taskReply{
		head:  head{PulpHref: "/pulp/api/v3/tasks/x/", PRN: "prn:core.task:x", PulpCreated: at, PulpLastUpdated: at},
		State: "failed", Name: "<name>", CreatedBy: new("/pulp/api/v3/users/1/"), StartedAt: &at, Error: &tasking.Error{Description: "no <luck>"},
		ChildTasks: []string{}, ProgressReports: []progressReportReply{{Message: "m", Total: new(int64(3))}}, CreatedResources: []string{unavailable}, Result: &result,
	}
}

// FuzzSelection selects fields: what is left is as it would be, and in its order.
func FuzzSelection(f *testing.F) {
	f.Add("", "")
	f.Add("state,pulp_href", "")
	f.Add(" state ,,nothing", "state")
	f.Add("", "result,error,progress_reports")
	f.Add("result,created_resources,head", "PRN")
	f.Fuzz(func(t *testing.T, only, without string) {
		names := func(text string) (list []string) {
			for name := range strings.SplitSeq(text, ",") {
				if name = strings.TrimSpace(name); name != "" {
					list = append(list, name)
				}
			}
			return list
		}
		s := selected(url.Values{"fields": {only}, "exclude_fields": {without}})
		task := sampleTask()
		full, err := marshal(task)
		if err != nil {
			t.Fatal(err)
		}
		got, err := s.project(task)
		if err != nil {
			t.Fatal(err)
		}
		want := slices.DeleteFunc(pairs(t, full), func(p pair) bool {
			return len(names(only)) > 0 && !slices.Contains(names(only), p.Name) || slices.Contains(names(without), p.Name)
		})
		if diff := cmp.Diff(want, pairs(t, got)); diff != "" {
			t.Errorf("fields %q but %q (-want +got):\n%s", only, without, diff)
		}
		list, err := s.project([]taskReply{task, task})
		if err != nil || string(list) != "["+string(got)+","+string(got)+"]" {
			t.Errorf("in a list: %s %v", list, err)
		}
		page, err := NewPage(Found{count: 7}, []taskReply{task}).encode(s)
		if err != nil || string(page) != `{"count":7,"next":null,"previous":null,"results":[`+string(got)+`]}` {
			t.Errorf("in a page: %s %v", page, err)
		}
	})
}

func TestNothingIsAListAsWell(t *testing.T) {
	t.Parallel()
	for _, s := range []selection{{}, {only: []string{"state"}}} {
		got, err := NewPage[taskReply](Found{}, nil).encode(s)
		if want := `{"count":0,"next":null,"previous":null,"results":[]}`; string(got) != want || err != nil {
			t.Errorf("%s %v", got, err)
		}
	}
}

// TestDocumentIsMadeOncePerEncoding: anyone may ask for it, without credentials.
func TestDocumentIsMadeOncePerEncoding(t *testing.T) {
	t.Parallel()
	s := Aloof(t, Config{})
	ask := func(path string) string {
		w := httptest.NewRecorder()
		s.Handler().ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/pulp/api/v3/docs/"+path, nil))
		return w.Body.String()
	}
	paths := []string{"api.json", "api.yaml", "api.json?bindings", "api.yaml?pk_path=1"}
	for _, path := range paths {
		ask(path)
	}
	if n := s.KeptForms(); n != len(paths) {
		t.Errorf("%d documents are kept of %d", n, len(paths))
	}
	s.document.forms.Range(func(key, _ any) bool {
		s.document.forms.Store(key, []byte("kept"))
		return true
	})
	for _, path := range paths {
		if got := ask(path); got != "kept" {
			t.Errorf("%s is made anew: %.40s", path, got)
		}
	}
}

const someKey = "01890a5d-ac96-774b-bcce-b302099a8057"

func TestHrefsAndPRNsNameObjects(t *testing.T) {
	t.Parallel()
	s := Aloof(t, Config{})
	const root = "/pulp/api/v3/"
	for text, want := range map[string]Object{
		root + "tasks/" + someKey + "/":                              {Resource: s.own.tasks, Keys: []string{someKey}, Key: someKey},
		root + "tasks/" + strings.ToUpper(someKey) + "/":             {Resource: s.own.tasks, Keys: []string{someKey}, Key: someKey},
		"https://pulp.example" + root + "tasks/" + someKey + "/?a=b": {Resource: s.own.tasks, Keys: []string{someKey}, Key: someKey},
		"prn:core.task:" + someKey:                                   {Resource: s.own.tasks, Keys: []string{someKey}, Key: someKey},
		"prn:core.task:" + strings.ToUpper(someKey):                  {Resource: s.own.tasks, Keys: []string{someKey}, Key: someKey},
		root + "tasks/":                         {Resource: s.own.tasks},
		root + "task-groups/" + someKey + "/":   {Resource: s.own.groups, Keys: []string{someKey}, Key: someKey},
		"prn:core.taskgroup:" + someKey:         {Resource: s.own.groups, Keys: []string{someKey}, Key: someKey},
		"prn:core.appstatus:" + someKey:         {Resource: s.own.workers, Keys: []string{someKey}, Key: someKey},
		"prn:core.taskschedule:" + someKey:      {Resource: s.own.schedules, Keys: []string{someKey}, Key: someKey},
		"prn:core.userrole:" + someKey:          {Resource: s.own.userRoles, Key: someKey}, // only the database knows the user
		"prn:auth.user:7":                       {Resource: s.own.users, Keys: []string{"7"}, Key: "7"},
		root + "users/7/roles/" + someKey + "/": {Resource: s.own.userRoles, Keys: []string{"7", someKey}},
		"":                                      {}, "/": {}, "x": {}, root + "tasks": {}, root + "tasks/x/": {}, root + "tasks/" + someKey: {}, root + "tasks/" + someKey + "//": {},
		root + "tasks/" + strings.ReplaceAll(someKey, "-", "") + "/": {}, "/pulp/api/v4/tasks/" + someKey + "/": {}, root + "tasks/" + someKey + "/list_roles/": {},
		root + "users/x/": {}, root + "users/-7/": {}, root + "users/+7/": {}, root + "users/07/": {}, root + "users/-0/": {}, "prn:auth.user:07": {}, root + "users/2147483648/": {}, root + "users/x/roles/" + someKey + "/": {},
		"prn:": {}, "prn:core.task": {}, "prn:core.task:": {}, "prn::" + someKey: {}, "prn:core.task:x": {}, "prn:core.task:" + someKey + ":x": {},
		"PRN:core.task:" + someKey: {}, "prn:file.filerepository:" + someKey: {}, "prn:core.userrole:7": {}, "prn:auth.user:" + someKey: {},
		"http://[/" + root: {}, "%zz": {},
	} {
		got, ok := s.parse(text)
		if ok != (want.Resource != nil) {
			t.Errorf("%q: %t", text, ok)
		} else if ok && (got.Resource != want.Resource || !slices.Equal(got.Keys, want.Keys) || got.Key != want.Key) {
			t.Errorf("%q: %s %q, in a PRN %q", text, got.Resource.Path, got.Keys, got.Key)
		}
	}
}

// FuzzResolve reads hrefs and PRNs: what is read can be written, and is then read as the same.
func FuzzResolve(f *testing.F) {
	for _, seed := range []string{
		"/pulp/api/v3/tasks/" + someKey + "/", "http://a/pulp/api/v3/users/7/roles/" + strings.ToUpper(someKey) + "/", "/pulp/api/v3/workers/", "prn:auth.user:007",
		"prn:core.taskgroup:" + someKey, "/pith/api/tasks/" + someKey + "/", "/pulp/api/v3/" + someKey + "/", "prn:a:b:c", "//x/pulp/api/v3/", "\x00", "/{}/",
	} {
		f.Add(seed)
	}
	s := Aloof(f, Config{})
	r := &Request{server: s}
	f.Fuzz(func(t *testing.T, text string) {
		if model, key, ok := parsePRN(text); ok && "prn:"+model+":"+key != text {
			t.Errorf("%q is of %q and %q", text, model, key)
		}
		o, ok := s.parse(text)
		if !ok {
			return
		}
		var names []string
		if len(o.Keys) > 0 {
			href := r.Href(o.Resource, o.Keys...)
			names = append(names, href, "https://pulp.example:8080"+href)
		}
		if o.named() {
			names = append(names, o.PRN())
		}
		for _, name := range names {
			if again, ok := s.parse(name); !ok || again.Resource != o.Resource || !slices.Equal(again.Keys, o.Keys) || again.Key != o.Key {
				t.Errorf("%q is %s %q; %q is %v", text, o.Resource.Path, o.Keys, name, again)
			}
		}
	})
}

// longest is more than any interval that clients may write.
const longest = 65536 * 24 * time.Hour

func TestPairsOfAQueryAreReadAsDjangoDoes(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]url.Values{
		"":                      {},
		"&&":                    {},
		"a":                     {"a": {""}},
		"a=1&b=2&a=3":           {"a": {"1", "3"}, "b": {"2"}},
		"a=b=c&=d":              {"a": {"b=c"}, "": {"d"}},
		"a=x;b=y":               {"a": {"x;b=y"}},
		"a+b=%41%20+%2B%26%3d":  {"a b": {"A  +&="}},
		"a=%zz&b=%&c=100%&d=%4": {"a": {"%zz"}, "b": {"%"}, "c": {"100%"}, "d": {"%4"}},
		"a=%C3%BC%ff&%ff=ü":     {"a": {"ü\uFFFD"}, "\uFFFD": {"ü"}},
		"a=%%41":                {"a": {"%A"}},
	} {
		if got := readPairs(text); !cmp.Equal(got, want) {
			t.Errorf("%q is read %q, want %q", text, got, want)
		}
	}
}

// FuzzInterval writes intervals and reads them.
func FuzzInterval(f *testing.F) {
	for _, seed := range []time.Duration{0, time.Microsecond, time.Second, time.Minute, 24*time.Hour - time.Microsecond, 24 * time.Hour, 49*time.Hour + 30, longest - 1} {
		f.Add(int64(seed))
	}
	f.Fuzz(func(t *testing.T, n int64) {
		want := time.Duration(n & math.MaxInt64 % int64(longest)).Truncate(time.Microsecond)
		if got, ok := parseInterval(interval(want)); !ok || got != want {
			t.Errorf("%s is written %q and read %s %t", want, interval(want), got, ok)
		}
	})
}

// FuzzParseInterval reads what is, or is not, an interval: what is read is written such that it is read again.
func FuzzParseInterval(f *testing.F) {
	for _, seed := range []string{"1 00:00:00", "00:00:01.5", "90", "1 2:3", ":", "", " ", "1e3", "-1", "+1", "0x1", "inf", "nan", "1 1 1", "1.5:0:0", "00:00:00.0000004", "99999 0", "1:2:3:4"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		d, ok := parseInterval(text)
		if !ok || d >= longest {
			return
		}
		if again, ok := parseInterval(interval(d)); !ok || again != d || d < 0 {
			t.Errorf("%q is %s, written %q, read %s %t", text, d, interval(d), again, ok)
		}
	})
}

func TestIntervalsAreReadInSeveralForms(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]time.Duration{
		"90": 90 * time.Second, "1:30": 90 * time.Second, "01:00:00": time.Hour, "2 00:00:00.5": 48*time.Hour + 500*time.Millisecond, " 1 1 ": 24*time.Hour + time.Second,
		"00:00:00.000001": time.Microsecond, "100:00:00": 100 * time.Hour, "0": 0,
		"": -1, "x": -1, "1:": -1, "-1": -1, "1 -1": -1, "1:2:3:4": -1, "1.5:00": -1, "1e3": -1, "nan": -1, "inf": -1, "0x10": -1, "1_0": -1, "70000 0": -1,
	} {
		got, ok := parseInterval(text)
		if ok != (want >= 0) || ok && got != want {
			t.Errorf("%q is %s %t", text, got, ok)
		}
	}
}
