package filter_test

import (
	"encoding/json"
	"fmt"
	"net/url"
	"os"

	"github.com/pithworks/pith/internal/filter"
)

func Example() {
	tasks := &filter.Set{
		Fields: []filter.Field{
			{Name: "name", Column: "name", Kind: filter.Text},
			{Name: "state", Column: "state::text", Kind: filter.Choice, Choices: []string{"waiting", "running"}},
			{Name: "created_resources", Kind: filter.Text, Condition: "id IN (SELECT task_id FROM created_resource WHERE resource = %s)"},
		},
		Orders: map[string]string{"pulp_created": "created_at"},
		Key:    "id",
		Newest: "id DESC",
	}
	others := []string{"limit", "offset"}

	domain := "default"
	q, err := tasks.Parse(url.Values{
		"name__contains": {"sync"},
		"q":              {`NOT state=running OR created_resources="prn:core.artifact:1"`},
		"ordering":       {"-pulp_created"},
		"limit":          {"10"},
	}, others, domain)
	fmt.Println("WHERE domain = $1 AND", q.Where, "ORDER BY", q.Order, err)
	fmt.Println(q.Args)

	_, err = tasks.Parse(url.Values{"state": {"bogus"}, "color": {"red"}}, others)
	_ = json.NewEncoder(os.Stdout).Encode(err)
	// Output:
	// WHERE domain = $1 AND strpos(name, $2::text) > 0 AND ((state::text = $3::text) IS NOT TRUE OR (id IN (SELECT task_id FROM created_resource WHERE resource = $4::text))) ORDER BY created_at DESC, id DESC <nil>
	// [default sync running prn:core.artifact:1]
	// {"errors":["Invalid Filter: 'color'"],"state":["Select a valid choice. bogus is not one of the available choices."]}
}
