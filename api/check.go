package api

import (
	"cmp"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strings"
)

// spelling is how a text has to be written.
type spelling struct {
	form *regexp.Regexp
	says string
}

func spelled(form, says string) spelling {
	return spelling{regexp.MustCompile("^(?:" + form + ")$"), says}
}

// What paths are made of: segments that need no escaping and do not lead elsewhere, as ".." does, and names of those that vary.
const (
	segment    = `[A-Za-z0-9_~-][A-Za-z0-9._~-]*`
	identifier = `[A-Za-z_][A-Za-z0-9_]*`
	part       = `(?:` + segment + `|\{` + identifier + `\})`

	plain = "between slashes it has letters, digits and -._~ only, no dot first"
)

var (
	basePaths       = spelled(`/(?:`+segment+`/)*`, "it must begin and end with a slash; "+plain)
	collectionPaths = spelled(`(?:`+segment+`/)*`, "it must end with a slash, and begin with none; "+plain)
	operationPaths  = spelled(`(?:\{\})?(?:`+part+`/)*`+part+`?`, `it may begin with "{}", and not with a slash; `+plain+", or a name in braces")
	identifiers     = spelled(identifier, "it has letters, digits and underscores only, and begins with no digit")
	// Names of roles get into the text of statements.
	dottedNames = spelled(`[A-Za-z0-9_.]+`, "it has letters, digits, dots and underscores only")
	models      = spelled(identifier+`\.`+identifier, "it is two words with a dot between them, such as core.task")
)

func (s spelling) check(what, text string) error {
	if s.form.MatchString(text) {
		return nil
	}
	return fmt.Errorf("the %s %q: %s", what, text, s.says)
}

// names tells who has what nobody else may have, by what it is and its name.
type names map[[2]string]string

func (n names) take(what, name, who string) error {
	if other, ok := n[[2]string{what, name}]; ok {
		return fmt.Errorf("the %s %q is taken by %s: choose another", what, name, other)
	}
	n[[2]string{what, name}] = who
	return nil
}

// check tells what is wrong with the components, but for what their routes and the document tell.
func (s *Server) check() error {
	taken := names{}
	for _, c := range s.cfg.Components {
		if err := c.check(s.root, taken); err != nil {
			return fmt.Errorf("component %q: %w", c.Label, err)
		}
	}
	return nil
}

func (c Component) check(root string, taken names) error {
	if err := cmp.Or(identifiers.check("Label", c.Label), taken.take("Label", c.Label, "another component")); err != nil {
		return err
	}
	for _, role := range c.Roles {
		if !strings.HasPrefix(role.Name, c.Label+".") {
			return fmt.Errorf("the role %q is not one of %s: its name begins with the label and a dot", role.Name, c.Label)
		}
		if err := cmp.Or(dottedNames.check("role", role.Name), taken.take("role", role.Name, c.Label)); err != nil {
			return err
		}
	}
	for _, res := range c.Resources {
		who := c.Label + "'s " + res.path()
		if err := res.check(root, who, taken); err != nil {
			return fmt.Errorf("%s: %w", res.path(), err)
		}
		for _, o := range res.Operations {
			err := cmp.Or(
				o.check(res),
				taken.take("operation id", o.id(res, false), who),
				taken.take("operation id in bindings", res.Tag+": "+o.id(res, true), who),
			)
			if err != nil {
				return fmt.Errorf("%s of %s: %w", o.Verb, res.path(), err)
			}
		}
	}
	return nil
}

// varying are the segments of a pattern that vary.
var varying = regexp.MustCompile(`\{` + identifier + `\}`)

func (r *Resource) check(root, who string, taken names) error {
	for at := r; at != nil; at = at.Parent {
		err := cmp.Or(
			basePaths.check("Base", at.base(root)), collectionPaths.check("Path", at.Path),
			identifiers.check("Key", at.Key), identifiers.check("ID", at.parameter()),
		)
		if err != nil {
			return err
		}
	}
	path := r.base(root) + varying.ReplaceAllString(r.path(), wildcard)
	err := cmp.Or(dottedNames.check("Name", r.Name), taken.take("path", path, who), taken.take("Key", r.Key, who))
	switch {
	case err != nil || r.Model == "":
		return err
	case r.Parent == nil && r.Existing == nil:
		return errors.New("it has a Model, but not Existing")
	case r.Parent != nil && (r.Locate == nil || r.Identify == nil):
		return errors.New("it has a Model and a Parent, but not Locate and Identify")
	}
	return cmp.Or(models.check("Model", r.Model), taken.take("Model", r.Model, who))
}

// operationMethods are those that operations may have.
var operationMethods = []string{http.MethodGet, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete}

func (o Operation) check(res *Resource) error {
	if err := cmp.Or(dottedNames.check("Verb", o.Verb), operationPaths.check("Path", o.Path)); err != nil {
		return err
	}
	switch {
	case !slices.Contains(operationMethods, o.Method):
		return fmt.Errorf("the Method %q is none of %s", o.Method, strings.Join(operationMethods, ", "))
	case o.Do.do == nil:
		return errors.New("it has no Do: Bare and With make one")
	case len(o.Replies) == 0:
		return errors.New("it has no Replies, so it could answer nothing")
	case o.modeled && (res.Parent != nil || res.Model == ""):
		return errors.New("it is for objects that have a Model and no Parent")
	}
	for status := range o.Replies {
		if status < http.StatusOK || status > 599 {
			return fmt.Errorf("no reply has the status %d: it is one from 200 to 599", status)
		}
	}
	for _, p := range o.Parameters {
		if p.Name == "" || !slices.Contains([]string{"string", "integer", "boolean"}, p.Type) {
			return fmt.Errorf("the parameter %q of the type %q: it needs a name, and the type string, integer or boolean", p.Name, p.Type)
		}
	}
	if o.Do.body != nil {
		if err := bodyType(o.Do.body); err != nil {
			return err
		}
	}
	if o.Collection != nil {
		return o.Collection.check()
	}
	return nil
}

func (c *Collection) check() error {
	if err := c.Filters.Validate(); err != nil {
		return err
	}
	for name := range c.References {
		i := slices.IndexFunc(c.Filters.Fields, func(f Field) bool { return f.Name == name })
		if i < 0 || c.Filters.Fields[i].Kind != UUIDField && c.Filters.Fields[i].Kind != IntField {
			return fmt.Errorf("no field %s of the kind UUIDField or IntField can be a reference", name)
		}
	}
	return nil
}
