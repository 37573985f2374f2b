package api_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestUsersSeeAndChangeThingsByTheirRoles(t *testing.T) {
	t.Parallel()
	h := newThingsHarness(t)
	h.newUser("lena", "things.thing_creator")
	h.newUser("max")
	h.newUser("vera", "things.thing_viewer")
	const noThing, denied = `{"detail": "No Thing matches the given query."}`, `{"detail": "You do not have permission to perform this action."}`
	var made thingReply
	h.want(post(thingsPath, `{"name": "lenas"}`).by("lena"), http.StatusCreated, &made)
	href, other := made.PulpHref, h.createThing("other")
	h.grown(href, 1)
	h.answers(post(thingsPath, `{"name": "lenas"}`).by("lena"), http.StatusBadRequest, `{"name": ["This field must be unique."]}`)
	for _, user := range []string{"max", "vera"} {
		h.answers(post(thingsPath, `{"name": "new"}`).by(user), http.StatusForbidden, denied)
	}
	if n := h.rolesOn(href); n != 1 {
		t.Errorf("there are %d roles on the thing", n)
	}
	h.sees(thingsPath, "admin", href, other)
	h.sees(thingsPath, "lena", href)
	h.sees(thingsPath, "max")
	h.sees(thingsPath, "vera", href, other)
	h.sees(thingsPath+"?name=other", "lena")
	h.sees(href+"versions/", "lena", href+"versions/1/")
	for _, path := range []string{"", "versions/", "versions/1/", "my_permissions/", "list_roles/"} {
		h.answers(get(href+path).by("max"), http.StatusNotFound, noThing)
	}
	h.answers(patch(href, `{"name": "x"}`).by("vera"), http.StatusForbidden, denied)
	h.answers(get(href+"list_roles/").by("vera"), http.StatusForbidden, denied)
	h.answers(post(other+"grow/", `{}`).by("lena"), http.StatusNotFound, noThing)
	for _, user := range []string{"vera", "lena"} {
		h.want(get(href+"versions/1/").by(user), http.StatusOK, nil)
	}

	h.answers(post(href+"add_role/", `{"role": "things.thing_viewer", "users": ["max"]}`).by("lena"), http.StatusCreated,
		`{"users": ["max"], "groups": [], "role": "things.thing_viewer"}`)
	h.sees(thingsPath, "max", href)
	h.answers(get(href+"my_permissions/").by("max"), http.StatusOK, `{"permissions": ["things.view_thing"]}`)
	h.answers(get(href+"my_permissions/").by("lena"), http.StatusOK,
		`{"permissions": ["things.add_thing", "things.change_thing", "things.delete_thing", "things.manage_roles_thing", "things.view_thing"]}`)
	h.answers(get(href+"list_roles/").by("lena"), http.StatusOK,
		`{"roles": [{"role": "things.thing_owner", "users": ["lena"], "groups": []}, {"role": "things.thing_viewer", "users": ["max"], "groups": []}]}`)
	h.answers(post(href+"add_role/", `{"role": "core.task_viewer", "users": ["max"]}`), http.StatusBadRequest,
		about("non_field_errors", "The role does not contain any permission for that object."))
	h.answers(post(href+"remove_role/", `{"role": "things.thing_viewer", "users": ["max"]}`).by("lena"), http.StatusCreated,
		`{"users": ["max"], "groups": [], "role": "things.thing_viewer"}`)
	h.sees(thingsPath, "max")
	h.answers(request{method: http.MethodDelete, path: href, user: "vera"}, http.StatusForbidden, denied)
	h.answers(request{method: http.MethodDelete, path: href, user: "lena"}, http.StatusNoContent, "")
	if n := h.rolesOn(href); n != 0 {
		t.Errorf("%d roles are on what is gone", n)
	}
	for _, path := range []string{"", "my_permissions/"} {
		h.answers(get(href+path), http.StatusNotFound, noThing)
	}
}

func TestRolesOnObjectsOfAComponentAreTold(t *testing.T) {
	t.Parallel()
	h := newThingsHarness(t)
	one := h.createThing("one")
	h.grown(one, 1)
	user := h.newUser("lena")
	var got struct {
		Role   string
		Object string `json:"content_object"`
		PRN    string `json:"content_object_prn"`
	}
	h.get(h.give(user, "things.thing_viewer", "prn:things.thing:"+keyIn(one)), &got)
	if got.Role != "things.thing_viewer" || got.Object != one || got.PRN != "prn:things.thing:"+keyIn(one) {
		t.Errorf("the role is %+v", got)
	}
	h.sees(thingsPath, "lena", one)
	for object, want := range map[string]string{
		one:                           about("non_field_errors", "The role 'core.task_viewer' does not carry any permission for that object."),
		one + "versions/1/":           about("non_field_errors", "The role 'core.task_viewer' does not carry any permission for that object."),
		"prn:things.thing:" + nowhere: `{"content_object": ["Object does not exist."]}`, one + "versions/2/": `{"content_object": ["Object does not exist."]}`,
		"prn:things.thingversion:" + nowhere: `{"content_object": ["Object does not exist."]}`, root + thingsPath: `{"content_object": ["URI not valid: ` + root + thingsPath + `"]}`,
	} {
		h.answers(post(user+"roles/", map[string]string{"role": "core.task_viewer", "content_object": object}), http.StatusBadRequest, want)
	}
	// A role on a version, which no role that there is can be on.
	version := h.object(one + "versions/1/")["prn"].(string)
	h.exec("INSERT INTO user_role (id, user_id, role, model, object) VALUES (gen_random_uuid(), 1, 'things.thing_viewer', 'things.thingversion', $1)", strings.TrimPrefix(version, "prn:things.thingversion:"))
	for _, object := range []string{one + "versions/1/", version} {
		var page struct {
			Results []struct {
				Href   string `json:"pulp_href"`
				PRN    string `json:"prn"`
				Object string `json:"content_object"`
				Name   string `json:"content_object_prn"`
			}
		}
		h.get("users/1/roles/?content_object="+object, &page)
		if len(page.Results) != 1 || page.Results[0].Object != one+"versions/1/" || page.Results[0].Name != version {
			t.Fatalf("roles on %s are %+v", object, page)
		}
		resolved, err := h.server.Resolve(t.Context(), page.Results[0].PRN, page.Results[0].Href, root+"users/2/roles/"+keyIn(page.Results[0].Href)+"/")
		if err != nil || !cmp.Equal(resolved[0].Keys, []string{"1", keyIn(page.Results[0].Href)}) || resolved[1].PRN() != page.Results[0].PRN || resolved[2].Resource != nil {
			t.Errorf("the role itself is %+v %v", resolved, err)
		}
	}
}

func TestFiltersTellOfThingsAsTheirListDoes(t *testing.T) {
	t.Parallel()
	h, _ := newThingsWorld(t)
	lena := h.newUser("lena", "core.task_viewer")
	one, other := h.createThing("one"), h.createThing("other")
	first := h.grown(one, 1)
	h.grown(other, 1)
	h.give(lena, "things.thing_viewer", one)
	h.sees("tasks/?created_resources="+one+"versions/1/", "lena", first)
	h.sees("tasks/?created_resources="+one, "lena")
	h.sees(thingsPath+"?version="+one+"versions/1/", "lena", one)
	hidden := h.object(other + "versions/1/")["prn"].(string)
	for _, text := range []string{other + "versions/1/", hidden, other + "versions/2/", "prn:things.thingversion:" + nowhere} {
		h.answers(get("tasks/?created_resources="+text).by("lena"), http.StatusBadRequest, `["URI `+text+` not found for thingversion."]`)
	}
	for _, version := range []string{"1", "2"} {
		text := other + "versions/" + version + "/"
		h.answers(get(thingsPath+"?version="+text).by("lena"), http.StatusBadRequest, `["URI not valid: `+text+`"]`)
	}
	for _, text := range []string{hidden, "prn:things.thingversion:" + nowhere} {
		h.sees(thingsPath+"?version="+text, "lena")
	}
	h.answers(get("tasks/?created_resources="+other).by("lena"), http.StatusBadRequest, `["URI `+other+` not found for thing."]`)
}
