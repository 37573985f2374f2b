package api_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pithworks/pith/api"
	appstatus "github.com/pithworks/pith/app_status"
	"github.com/pithworks/pith/internal/builtin"
	"github.com/pithworks/pith/pool"
	"github.com/pithworks/pith/tasking"
)

// examplePool is where the examples get their pool from. What they show needs no database.
func examplePool() *pgxpool.Pool {
	p, err := pool.Open(context.Background(), "postgres://nobody@127.0.0.1:1/none", pool.Config{})
	if err != nil {
		panic(err) // the address is good
	}
	return p
}

type planetReply struct {
	PulpHref string `json:"pulp_href"`
	PRN      string `json:"prn"`
	Name     string `json:"name" doc:"What people call it."`
}

func ExampleComponent() {
	planets := &api.Resource{
		Path: "planets/solar/planet/", Name: "planets_solar_planet", Key: "solar_planet", Numbered: true,
		Model: "solar.planet", Noun: "Planet", Tag: "Planets: Solar",
		Existing: func(_ context.Context, keys []string) ([]string, error) {
			return slices.DeleteFunc(keys, func(key string) bool { return key != "3" }), nil
		},
	}
	planets.Operations = []api.Operation{{
		Method: http.MethodGet, Path: "{}", Verb: "read", Summary: "Read a planet.", Public: true,
		Replies: map[int]any{http.StatusOK: planetReply{}},
		Do: api.Bare(func(_ context.Context, r *api.Request) (api.Reply, error) {
			if r.ID != "3" {
				return api.Reply{}, api.NotFound(planets.Noun)
			}
			return api.OK(planetReply{r.Href(planets, r.ID), planets.PRN(r.ID), "Earth"})
		}),
	}}
	db := examplePool()
	defer db.Close()
	newClient := func(app *appstatus.App) (*tasking.Client, error) {
		registry, err := builtin.Registry()
		if err != nil {
			return nil, err
		}
		return tasking.New(db, tasking.Config{Registry: registry, App: app})
	}
	server, err := api.New(db, newClient, api.Config{
		Version: builtin.Version,
		Components: []api.Component{{
			Label: "solar", Version: "1.0.0", Package: "pulp-solar", Module: "pulp_solar.app", Resources: []*api.Resource{planets},
		}},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, key := range []string{"3", "10"} {
		w := httptest.NewRecorder()
		server.Handler().ServeHTTP(w, httptest.NewRequestWithContext(context.Background(), http.MethodGet, "/pulp/api/v3/planets/solar/planet/"+key+"/", nil))
		fmt.Println(w.Code, w.Body)
	}
	named, err := server.Resolve(context.Background(), "prn:solar.planet:3")
	fmt.Println(named[0].Resource.Noun, named[0].Keys, err)
	// Output:
	// 200 {"pulp_href":"/pulp/api/v3/planets/solar/planet/3/","prn":"prn:solar.planet:3","name":"Earth"}
	// 404 {"detail":"No Planet matches the given query."}
	// Planet [3] <nil>
}
