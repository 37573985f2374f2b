package api

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pithworks/pith/internal/filter"
	"github.com/pithworks/pith/internal/resend"
)

// Collection is what a list operation lists.
type Collection struct {
	// Relation is the view or table that the filters' columns are of.
	Relation string
	// Filters are what clients may ask for.
	Filters filter.Set
	// Scope is a condition on what the user may see, whose placeholders begin with $1, and their parameters. Default:
	// everyone may see everything.
	Scope func(context.Context, *Request) (string, []any, error)
	// References are the fields whose values are hrefs or PRNs of objects of a resource, by the fields' names. They are of the
	// kind UUIDField, or IntField if the objects are Numbered, and are compared with the keys in the objects' PRNs. A UUIDField
	// whose Column is not the Filters' Key may also be asked for null.
	References map[string]*Resource
	// names are the fields whose values may be hrefs or PRNs of any objects, which are looked up.
	names map[string]naming
	// Lax collections have no filters, and ignore the parameters that would be some, as some of Pulp's do.
	Lax bool
	// MaxLimit is the longest page, of objects that are large. Default: 10000.
	MaxLimit int
	// Count answers how many there are where that can be told sooner than by counting; false: it cannot. The last argument
	// says that the user may see them all. Default: it never can.
	Count func(ctx context.Context, r *Request, all bool) (n int, ok bool, err error)
}

// Names of package filter that other packages may use.
type (
	// Filters are what clients may ask for.
	Filters = filter.Set
	// Field is one thing that they may ask about.
	Field = filter.Field
)

// The kinds of fields, of which each has lookups of its own.
const (
	TextField   = filter.Text
	ChoiceField = filter.Choice
	TimeField   = filter.Time
	IntField    = filter.Int
	UUIDField   = filter.UUID
	BoolField   = filter.Bool
	ArrayField  = filter.Array
	LabelsField = filter.Labels
)

const (
	defaultLimit = 100
	// maxLimit is the longest page, unless a collection has a shorter one. Who asks for more gets that many, and a link to the next.
	maxLimit = 10000
	// maxOffset is how far into a list a page may begin, and beyond the end of every list.
	maxOffset = math.MaxInt32
)

// general are the parameters of all lists, which filters leave alone. As in Pulp, page_size is allowed and does nothing.
var general = []string{"limit", "offset", "page_size", "fields", "exclude_fields", "minimal"}

// window is which part of a list the client wants. What is no number is the default, as in Pulp.
func (r *Request) window() (limit, offset int) {
	limit, err := strconv.Atoi(r.last("limit"))
	if err != nil || limit <= 0 {
		limit = defaultLimit
	}
	offset, err = strconv.Atoi(r.last("offset"))
	if err != nil || offset < 0 {
		offset = 0
	}
	most := maxLimit
	if r.collection != nil {
		most = cmp.Or(r.collection.MaxLimit, maxLimit)
	}
	return min(limit, most), min(offset, maxOffset)
}

// Found is a part of a list: what its objects are, and where it stands.
type Found struct {
	// Keys are those of its objects, in their order.
	Keys []string

	count          int
	next, previous *string
}

// part makes the links of a part of a list of count objects.
func (r *Request) part(count int) Found {
	f := Found{count: count}
	limit, offset := r.window()
	if offset+limit < count {
		f.next = r.pageAt(offset + limit)
	}
	if offset > 0 {
		f.previous = r.pageAt(offset - limit)
	}
	return f
}

// pageAt is where the page of the list is that begins at an offset.
func (r *Request) pageAt(offset int) *string {
	limit, _ := r.window()
	query := url.Values{}
	maps.Copy(query, r.Query)
	query.Set("limit", strconv.Itoa(limit))
	query.Set("offset", strconv.Itoa(offset))
	if offset <= 0 {
		query.Del("offset")
	}
	to := r.base() + r.URL.EscapedPath() + "?" + query.Encode()
	return &to
}

// end ends a page after n of its objects; the next one begins there.
func (r *Request) end(f *Found, n int) {
	if n < len(f.Keys) {
		_, offset := r.window()
		f.Keys, f.next = f.Keys[:n], r.pageAt(offset+n)
	}
}

// statement makes the conditions of a request, and the statement that finds the keys of the objects that it is to list.
func (c *Collection) statement(ctx context.Context, r *Request) (scope string, q filter.Query, text string, args []any, err error) {
	scope = "true"
	if c.Scope != nil {
		if scope, args, err = c.Scope(ctx, r); err != nil {
			return scope, q, "", nil, err
		}
	}
	asked := r.Query
	if c.Lax {
		asked = nil
	}
	if q, err = c.parse(ctx, r, asked, args); err != nil {
		if bad, ok := errors.AsType[*filter.Error](err); ok {
			err = &ResponseError{Status: http.StatusBadRequest, Body: bad}
		}
		return scope, q, "", nil, err
	}
	limit, offset := r.window()
	n := len(q.Args)
	// An order by the key's own name is one by the column, not by its text.
	text = fmt.Sprintf("SELECT %s::text AS object_key FROM %s WHERE %s AND %s ORDER BY %s LIMIT $%d::int OFFSET $%d::bigint",
		c.Filters.Key, c.Relation, scope, q.Where, q.Order, n+1, n+2)
	return scope, q, text, append(slices.Clone(q.Args), limit, offset), nil
}

// Page finds the objects of a collection that the client asks for and the user may see.
func (r *Request) Page(ctx context.Context, c *Collection) (Found, error) {
	scope, q, text, args, err := c.statement(ctx, r)
	if err != nil {
		return Found{}, err
	}
	keys, err := r.keys(ctx, text, args)
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok && pg.Code == filter.InvalidRegex {
		return Found{}, &ResponseError{Status: http.StatusBadRequest, Body: q.RegexError()}
	} else if err != nil {
		return Found{}, fmt.Errorf("list %s: %w", c.Relation, err)
	}
	limit, offset := r.window()
	count := offset + len(keys)
	if len(keys) == limit || len(keys) == 0 && offset > 0 { // else the end has been seen
		if count, err = c.count(ctx, r, scope, q); err != nil {
			return Found{}, fmt.Errorf("count %s: %w", c.Relation, err)
		}
	}
	f := r.part(count)
	f.Keys = keys
	return f, nil
}

// keys are those that a statement finds.
func (r *Request) keys(ctx context.Context, text string, args []any) ([]string, error) {
	return query(ctx, func(ctx context.Context) ([]string, error) {
		rows, err := r.server.db.Query(ctx, text, args...)
		if err != nil {
			return nil, err
		}
		return pgx.CollectRows(rows, pgx.RowTo[string])
	})
}

// among are those of these keys whose objects the user may see.
func (c *Collection) among(ctx context.Context, r *Request, keys []string) ([]string, error) {
	if c.Scope == nil {
		return keys, nil
	}
	scope, args, err := c.Scope(ctx, r)
	if err != nil || scope == "true" {
		return keys, err
	}
	kind := "uuid"
	if r.resource.Numbered {
		kind = "bigint"
	}
	text := fmt.Sprintf("SELECT %s::text FROM %s WHERE %s AND %s = ANY ($%d::%s[])", c.Filters.Key, c.Relation, scope, c.Filters.Key, len(args)+1, kind)
	return r.keys(ctx, text, append(slices.Clone(args), keys))
}

func (c *Collection) count(ctx context.Context, r *Request, scope string, q filter.Query) (int, error) {
	if c.Count != nil {
		if n, ok, err := c.Count(ctx, r, scope == "true"); ok || err != nil {
			return n, err
		}
	}
	text := fmt.Sprintf("SELECT count(*) FROM %s WHERE %s AND %s", c.Relation, scope, q.Where)
	return query(ctx, func(ctx context.Context) (n int, err error) {
		return n, r.server.db.QueryRow(ctx, text, q.Args...).Scan(&n)
	})
}

// Page is a part of a list.
type Page[T any] struct {
	Count    int     `json:"count" api:"required"`
	Next     *string `json:"next"`
	Previous *string `json:"previous"`
	Results  []T     `json:"results" api:"required"`
}

// paged are pages of any type.
type paged interface {
	encode(selection) (json.RawMessage, error)
}

func (p Page[T]) encode(fields selection) (json.RawMessage, error) {
	results, err := fields.project(p.Results)
	if err != nil {
		return nil, err
	}
	return marshal(struct {
		Count    int             `json:"count"`
		Next     *string         `json:"next"`
		Previous *string         `json:"previous"`
		Results  json.RawMessage `json:"results"`
	}{p.Count, p.Next, p.Previous, results})
}

// NewPage makes a page of what was read of the objects that were found.
func NewPage[T any](f Found, results []T) Page[T] {
	return Page[T]{f.count, f.next, f.previous, some(results)}
}

// How long a statement is sent again whose answer got lost, and how long one may take.
const (
	queryLimit   = 5 * time.Second
	queryTimeout = 60 * time.Second
)

// query sends a statement that is safe to send again.
func query[T any](ctx context.Context, statement func(context.Context) (T, error)) (out T, err error) {
	err = resend.Do(ctx, queryLimit, queryTimeout, func(ctx context.Context) (err error) {
		out, err = statement(ctx)
		return err
	})
	return out, err
}

// constraint is the name of the constraint that a statement has broken; "": it has broken none.
func constraint(err error) string {
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok {
		return pg.ConstraintName
	}
	return ""
}
