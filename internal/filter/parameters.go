package filter

import (
	"maps"
	"slices"
)

// Parameter describes a query parameter, for an OpenAPI document.
type Parameter struct {
	Name string
	// Type is a type of JSON schema: that of the elements, if it is a list.
	Type string
	// List says that the value has elements, separated by commas (explode: false).
	List bool
	// Format refines the type, such as "date-time"; it may be empty.
	Format string
	// Enum has the possible values; none: any.
	Enum        []string
	Description string
}

// Parameters lists what clients may send: those of the fields in their order, then ordering and q.
func (s *Set) Parameters() []Parameter {
	var all []Parameter
	for i := range s.Fields {
		f := &s.Fields[i]
		for _, lookup := range f.lookups() {
			all = append(all, f.describe(lookup))
		}
	}
	var orders []string
	for _, name := range append(slices.Sorted(maps.Keys(s.Orders)), "pk") {
		orders = append(orders, name, "-"+name)
	}
	return append(
		all,
		Parameter{
			Name: "ordering", Type: "string", List: true, Enum: orders,
			Description: "Fields to order by; a - before one turns it around.",
		},
		Parameter{Name: "q", Type: "string", Description: "Expression of the other filters with NOT, AND, OR and parentheses."},
	)
}

func (f *Field) describe(lookup string) Parameter {
	k := kinds[f.Kind]
	p := Parameter{
		Name: f.parameter(lookup), Type: k.json, List: lookup == "in" || lookup == "range", Format: k.format,
		Description: "Results whose " + f.Name + lookups[lookup].says + ".",
	}
	switch {
	case lookup == "isnull":
		p.Type, p.Format = "boolean", ""
	case f.Kind == UUID && f.Parse != nil: // a reference may be written in several ways
		p.Format = ""
	case f.Kind == Choice && lookup != "in": // where other words are no error
		p.Enum = f.Choices
	case f.Kind == Labels:
		p.Description = "Results whose labels meet all these terms, with commas between: key, !key, key=value, key!=value, key~part."
	case f.Kind == Array && lookup == "":
		p.Description = "Results whose " + f.Name + " have this element."
	case f.Kind == Array:
		p.Description = "Results whose " + f.Name + " have all these elements."
	}
	return p
}
