package main

import (
	"context"

	"golang.org/x/sync/errgroup"

	appstatus "github.com/pithworks/pith/app_status"
	"github.com/pithworks/pith/internal/builtin"
	"github.com/pithworks/pith/tasking"
)

// asAPI calls do with a client that may run immediate tasks: for that long this process is known to
// the others, as a process of Pulp's API is. If it dies meanwhile, the sweep ends its task.
func (s *session) asAPI(ctx context.Context, client *tasking.Client, do func(*tasking.Client) error) error {
	app, err := appstatus.New(client.Pool(), appstatus.Config{Type: appstatus.API, Versions: builtin.Versions(), Log: s.log})
	if err != nil {
		return err
	}
	able, err := s.newClient(client.Pool(), tasking.Config{App: app})
	if err != nil {
		return err
	}
	if err := app.Register(ctx); err != nil {
		return err
	}
	beats, stop := context.WithCancel(context.WithoutCancel(ctx))
	var parts errgroup.Group
	parts.Go(func() error { return app.Run(beats) })
	err = do(able)
	stop()
	if beatErr := parts.Wait(); err == nil {
		err = beatErr
	}
	if gone := app.Unregister(context.WithoutCancel(ctx)); err == nil {
		err = gone
	}
	return err
}
