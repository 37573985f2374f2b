package api

import (
	"context"
	"maps"
	"net/http"
	"slices"
	"strings"

	"github.com/pithworks/pith/internal/filter"
)

// Labels are an object's pulp_labels: texts or nulls, by keys that have letters, digits, blanks and _ . - only. Those of a
// body are checked as in pulpcore 3.123, and lose the blanks around their values.
type Labels map[string]*string

// clean takes away the blanks around values, and tells what is wrong with the labels.
func (l Labels) clean() (wrong []string) {
	for _, key := range slices.Sorted(maps.Keys(l)) {
		value := l[key]
		if value != nil {
			l[key] = new(strings.TrimSpace(*value))
		}
		switch {
		case !filter.IsLabelKey(key):
			wrong = append(wrong, "Key '"+key+"' contains invalid characters. Only alphanumerics, underscores, spaces, hyphens, and dots are allowed.")
		case value != nil && strings.ContainsAny(*value, "()"):
			wrong = append(wrong, "Key '"+key+"' contains value with parenthesis.")
		}
	}
	return wrong
}

type setLabelBody struct {
	IgnoreUnknown
	Key   string  `json:"key" api:"required"`
	Value *string `json:"value" api:"required null blank"`
}

type setLabelReply struct {
	Key   string  `json:"key"`
	Value *string `json:"value"`
}

type unsetLabelBody struct {
	IgnoreUnknown
	Key string `json:"key" api:"required"`
}

type unsetLabelReply struct {
	Key   string  `json:"key"`
	Value *string `json:"value" doc:"What it was."`
}

// LabelOperations are those by which one label of an object of a resource is set and unset. What changes the object, and what
// lets see it, are permissions. The resource has no Parent.
//
// Its author keeps the labels. Set gives an object's label a value, nil for null; false: the object is not there. Unset takes
// a label away, and answers its value; false: it is not there. Each is one statement that leaves the other labels alone, so
// that of those who change several at the same time nobody loses what another has done.
func LabelOperations(
	change, view string,
	set func(ctx context.Context, object, label string, value *string) (bool, error),
	unset func(ctx context.Context, object, label string) (*string, bool, error),
) []Operation {
	mayChange := func(ctx context.Context, r *Request) error {
		return r.server.mayObject(ctx, r, r.resource, change, view)
	}
	return []Operation{
		{
			Method: http.MethodPost, Path: wildcard + "set_label/", Verb: "set_label", Summary: "Set a label of this object.",
			Replies: map[int]any{http.StatusCreated: setLabelReply{}}, Allow: mayChange, modeled: true,
			Do: With(func(ctx context.Context, r *Request, body setLabelBody) (Reply, error) {
				labels := Labels{body.Key: body.Value}
				if wrong := labels.clean(); wrong != nil {
					return Reply{}, FieldErrors{NonField: wrong}
				}
				switch ok, err := set(ctx, r.ID, body.Key, labels[body.Key]); {
				case err != nil:
					return Reply{}, err
				case !ok: // since it was found
					return Reply{}, NotFound(r.resource.Noun)
				}
				return Reply{Status: http.StatusCreated, Body: setLabelReply{body.Key, labels[body.Key]}}, nil
			}),
		},
		{
			Method: http.MethodPost, Path: wildcard + "unset_label/", Verb: "unset_label", Summary: "Take a label from this object.",
			Replies: map[int]any{http.StatusCreated: unsetLabelReply{}}, Allow: mayChange, modeled: true,
			Do: With(func(ctx context.Context, r *Request, body unsetLabelBody) (Reply, error) {
				value, ok, err := unset(ctx, r.ID, body.Key)
				switch {
				case err != nil:
					return Reply{}, err
				case !ok:
					return Reply{}, FieldErrors{"key": []string{"Label '" + body.Key + "' is not set on the object."}}
				}
				return Reply{Status: http.StatusCreated, Body: unsetLabelReply{body.Key, value}}, nil
			}),
		},
	}
}
