package api

import (
	"context"
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
func (c *Collection) parse(ctx context.Context, s *Server, asked url.Values, args []any) (filter.Query, error) {
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
	objects, err := s.resolve(ctx, texts, c.names != nil)
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
