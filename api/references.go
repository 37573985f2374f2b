package api

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"

	"github.com/google/uuid"

	"github.com/pithworks/pith/internal/filter"
)

// A naming makes the value of a filter of a text and what it names; that has no Resource if it names nothing.
type naming func(text string, o Object) (any, error)

// parse reads the filters of a request. What they name is looked up all at once, also what expressions name: so filters are
// read twice, first to learn what that is.
func (c *Collection) parse(ctx context.Context, r *Request, asked url.Values, args []any) (filter.Query, error) {
	var texts []string
	first := c.filters(func(f filter.Field, text string) (any, error) {
		texts = append(texts, text)
		switch f.Kind {
		case filter.UUID:
			return uuid.Nil, nil
		case filter.Int:
			return int64(0), nil
		default:
			return "", nil
		}
	})
	q, err := first.Parse(asked, general, args...)
	if err != nil || texts == nil {
		return q, err
	}
	slices.Sort(texts)
	texts = slices.Compact(texts)
	objects, err := r.server.resolve(ctx, texts, c.names != nil)
	if err == nil {
		err = r.hide(ctx, texts, objects, c.names != nil)
	}
	if err != nil {
		return q, err
	}
	second := c.filters(func(f filter.Field, text string) (any, error) {
		i, _ := slices.BinarySearch(texts, text)
		if name := c.names[f.Name]; name != nil {
			return name(text, objects[i])
		}
		return c.reference(f, text, objects[i])
	})
	return second.Parse(asked, general, args...)
}

// hide makes of the objects that texts name, and that the user may not see, what those are that are gone: so no filter tells
// what there is. Objects that have parents are seen with the first of these. Others tell something only where all were looked up.
func (r *Request) hide(ctx context.Context, texts []string, objects []Object, all bool) error {
	if r.User != nil && r.User.Superuser {
		return nil
	}
	found := func(o Object) bool { return o.named() && !o.gone && (all || o.Resource.Parent != nil) }
	asked, seen := map[*Resource][]string{}, map[*Resource][]string{}
	for _, o := range objects {
		if found(o) {
			asked[o.Resource.root()] = append(asked[o.Resource.root()], o.Keys[0])
		}
	}
	for res, keys := range asked {
		var err error
		if seen[res], err = r.seen(ctx, res, keys); err != nil {
			return fmt.Errorf("look up who may see objects of %s: %w", res.Path, err)
		}
	}
	for i, o := range objects {
		if found(o) && !slices.Contains(seen[o.Resource.root()], o.Keys[0]) {
			objects[i], _ = r.server.parse(texts[i]) // without what was found out
			objects[i].gone = true
		}
	}
	return nil
}

// root is the first of the resource's parents, or itself.
func (r *Resource) root() *Resource {
	for r.Parent != nil {
		r = r.Parent
	}
	return r
}

// seen are those of these keys of a resource without parent whose objects the user finds in the list of them; without a list
// there are none.
func (r *Request) seen(ctx context.Context, res *Resource, keys []string) ([]string, error) {
	i := slices.IndexFunc(res.Operations, func(o Operation) bool { return o.Collection != nil && o.Path == "" })
	if i < 0 || r.User == nil && !res.Operations[i].Public {
		return nil, nil
	}
	o := res.Operations[i]
	// As if the list were asked for: the path names no object.
	plain := (&http.Request{Method: o.Method, URL: r.URL, Header: r.Header, Host: r.Host, TLS: r.TLS}).WithContext(ctx)
	list := &Request{Request: plain, User: r.User, server: r.server, resource: res, collection: o.Collection}
	if o.Allow != nil {
		err := o.Allow(ctx, list)
		if p, ok := problem(err); ok && (p.Status == http.StatusForbidden || p.Status == http.StatusNotFound) {
			return nil, nil
		} else if err != nil {
			return nil, err
		}
	}
	return o.Collection.among(ctx, list, keys)
}

// filters are those of the collection, with this to read what is an href or a PRN.
func (c *Collection) filters(read func(f filter.Field, text string) (any, error)) *filter.Set {
	set := c.Filters
	set.Fields = slices.Clone(set.Fields)
	for i, f := range set.Fields {
		if c.names[f.Name] != nil || c.References[f.Name] != nil {
			set.Fields[i].Parse = func(text string) (any, error) { return read(f, text) }
		}
	}
	return &set
}

// reference is the key of the object that a text names, which has to be of the field's resource, or null where that may be.
func (c *Collection) reference(f filter.Field, text string, o Object) (any, error) {
	if text == "null" && f.Kind == filter.UUID && f.Column != "" && f.Column != c.Filters.Key {
		return filter.Null{}, nil
	}
	if o.Resource != c.References[f.Name] || o.Key == "" {
		return nil, filter.ListError("URI not valid: " + text)
	}
	if f.Kind == filter.Int {
		return strconv.ParseInt(o.Key, 10, 64)
	}
	return uuid.Parse(o.Key)
}
