package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"
	"github.com/testcontainers/testcontainers-go"
	"github.com/testcontainers/testcontainers-go/log"
	"github.com/testcontainers/testcontainers-go/wait"
)

const (
	// buildTimeout bounds the making of the image, which installs packages.
	buildTimeout = 10 * time.Minute
	// startTimeout bounds each start, stopGrace how long running transactions may hold up a restart,
	// and removeTimeout the end, which nothing else can bound.
	startTimeout  = 60 * time.Second
	stopGrace     = 2 * time.Second
	removeTimeout = 30 * time.Second

	// label marks the containers.
	label = "org.pithworks.pith"

	// up is PgBouncer's line when its socket accepts connections, one for each start.
	up = "process up: PgBouncer"
	// taken is its line, in part, when another process has the port.
	taken = "Address already in use"
)

// Ports are taken from below the range that the kernel gives to outgoing connections: the pooler
// must get the same one again after it was killed.
const (
	lowestPort  = 15000
	highestPort = 32000
)

// errPortTaken is wrapped by the error of a start that lost its port.
var errPortTaken = errors.New("port is taken")

// quiet keeps the library to itself. Its reaper would be a second container, of an image that has
// to be pulled; what it is for is done at the end of the input.
func quiet() {
	_ = os.Setenv("TESTCONTAINERS_RYUK_DISABLED", "true") // fails for bad names only
	log.SetDefault(log.NewNoopLogger())
}

// engine connects to the container engine. The default network is named since one without a bridge
// would be given one.
func engine() (*testcontainers.DockerProvider, error) {
	p, err := testcontainers.NewDockerProvider(testcontainers.WithDefaultBridgeNetwork("host"))
	if err != nil {
		return nil, fmt.Errorf("find a container engine: %w", err)
	}
	return p, nil
}

// build makes the image. The output of a build that fails goes to errOut.
func build(ctx context.Context, cfg config, errOut io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, buildTimeout)
	defer cancel()
	provider, err := engine()
	if err != nil {
		return err
	}
	defer provider.Close()
	repo, tag, _ := strings.Cut(cfg.image, ":")
	var output bytes.Buffer
	if _, err := provider.BuildImage(ctx, &testcontainers.ContainerRequest{FromDockerfile: testcontainers.FromDockerfile{
		Context:        cfg.context,
		Repo:           repo,
		Tag:            tag,
		BuildArgs:      map[string]*string{"DEBIAN": &cfg.debian},
		KeepImage:      true,
		BuildLogWriter: &output,
		BuildOptionsModifier: func(o *client.ImageBuildOptions) {
			o.NetworkMode = "host"
		},
	}}); err != nil {
		_, _ = output.WriteTo(errOut)
		return fmt.Errorf("build %s: %w", cfg.image, err)
	}
	return nil
}

// A pooler is PgBouncer in a container.
type pooler struct {
	provider  *testcontainers.DockerProvider
	container testcontainers.Container
	port      int
	starts    int // that succeeded
}

// launch creates a container and waits until it accepts connections.
func launch(ctx context.Context, cfg config) (*pooler, error) {
	provider, err := engine()
	if err != nil {
		return nil, err
	}
	const tries = 5
	for try := 1; ; try++ {
		port, err := freePort()
		if err != nil {
			return nil, err
		}
		p := &pooler{provider: provider, port: port}
		if err = p.create(ctx, cfg); err == nil {
			if err = p.start(ctx); err == nil {
				return p, nil
			}
		}
		if p.container != nil {
			err = errors.Join(err, p.remove(ctx))
		}
		if !errors.Is(err, errPortTaken) || try == tries {
			return nil, err
		}
	}
}

func (p *pooler) create(ctx context.Context, cfg config) (err error) {
	// Not to be interrupted: the engine would create it all the same, and nobody would know of it.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), startTimeout)
	defer cancel()
	if _, err := p.provider.Client().ImageInspect(ctx, cfg.image); err != nil {
		return fmt.Errorf("find image %s, which --build makes: %w", cfg.image, err) // else it would be pulled
	}
	p.container, err = p.provider.CreateContainer(ctx, testcontainers.ContainerRequest{
		Image:  cfg.image,
		Labels: map[string]string{label: "pooler", label + ".port": strconv.Itoa(p.port)},
		Env: map[string]string{
			"PGBOUNCER_UPSTREAM_HOST": "127.0.0.1",
			"PGBOUNCER_UPSTREAM_PORT": strconv.Itoa(cfg.upstreamPort),
			"PGBOUNCER_LISTEN_ADDR":   "127.0.0.1",
			"PGBOUNCER_LISTEN_PORT":   strconv.Itoa(p.port),
			"PGBOUNCER_POOL_MODE":     cfg.poolMode,
			"PGBOUNCER_POOL_SIZE":     strconv.Itoa(cfg.poolSize),
			"PGBOUNCER_AUTH_TYPE":     "trust",
			"PGBOUNCER_USER":          "pith",
			"PGBOUNCER_ADMIN_USERS":   "pith",
		},
		ConfigModifier: func(c *container.Config) {
			// Nobody looks at it, and it would take processor time from the tests.
			c.Healthcheck = &container.HealthConfig{Test: []string{"NONE"}}
		},
		HostConfigModifier: hostNetwork,
	})
	if err != nil {
		return fmt.Errorf("create container of %s: %w", cfg.image, err)
	}
	return nil
}

func hostNetwork(h *container.HostConfig) {
	h.NetworkMode = "host"
	// For as many clients as the image lets in, and the server connections.
	h.Ulimits = []*container.Ulimit{{Name: "nofile", Soft: 20000, Hard: 20000}}
}

// start starts the container and waits for the line that tells that it serves. A probe of the port
// could be answered by another process that has taken it.
func (p *pooler) start(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	if err := p.container.Start(ctx); err != nil {
		return fmt.Errorf("start PgBouncer: %w", err)
	}
	ready := wait.ForLog(up).WithOccurrence(p.starts + 1).WithStartupTimeout(startTimeout).
		WithPollInterval(20 * time.Millisecond)
	if err := ready.WaitUntilReady(ctx, p.container); err != nil {
		lines := p.lastLines(ctx)
		if strings.Contains(lines, taken) {
			return fmt.Errorf("start PgBouncer on port %d: %w", p.port, errPortTaken)
		}
		return fmt.Errorf("start PgBouncer: %w\n%s", err, lines)
	}
	p.starts++
	return nil
}

// lastLines returns the end of the container's log.
func (p *pooler) lastLines(ctx context.Context) string {
	const most = 5
	// Also where the start took too long.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), removeTimeout)
	defer cancel()
	logs, err := p.container.Logs(ctx)
	if err != nil {
		return ""
	}
	defer logs.Close()
	text, err := io.ReadAll(logs)
	if err != nil {
		return ""
	}
	lines := slices.Collect(strings.Lines(string(text)))
	return strings.Join(lines[max(0, len(lines)-most):], "")
}

// kill ends PgBouncer as a crash would, and waits for it. It is no error if it does not run.
func (p *pooler) kill(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	engine, id := p.provider.Client(), p.container.GetContainerID()
	_, err := engine.ContainerKill(ctx, id, client.ContainerKillOptions{Signal: "KILL"})
	if err != nil {
		if state, serr := p.container.State(ctx); serr == nil && !state.Running {
			return nil
		}
		return fmt.Errorf("kill PgBouncer: %w", err)
	}
	exit := engine.ContainerWait(ctx, id, client.ContainerWaitOptions{Condition: container.WaitConditionNotRunning})
	select {
	case <-exit.Result:
		return nil
	case err := <-exit.Error:
		return fmt.Errorf("kill PgBouncer: %w", err)
	}
}

// restart stops PgBouncer, if it runs, and starts it on the same port.
func (p *pooler) restart(ctx context.Context) error {
	grace := stopGrace
	if err := p.container.Stop(ctx, &grace); err != nil {
		return fmt.Errorf("stop PgBouncer: %w", err)
	}
	return p.start(ctx)
}

// remove ends PgBouncer for good, cutting off its clients, even if ctx has ended.
func (p *pooler) remove(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), removeTimeout)
	defer cancel()
	if err := p.container.Terminate(ctx, testcontainers.StopContext(ctx), testcontainers.StopTimeout(0)); err != nil {
		return fmt.Errorf("remove container: %w", err)
	}
	return nil
}

// freePort returns a port of 127.0.0.1 that nothing listens on. Another process may take it before
// the container does.
func freePort() (int, error) {
	for range 20 {
		port := lowestPort + rand.IntN(highestPort-lowestPort)
		if l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
			return port, l.Close()
		}
	}
	return 0, fmt.Errorf("find a free port: none from %d to %d", lowestPort, highestPort)
}
