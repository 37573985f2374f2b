// Command rdsiam prints an IAM token for Amazon RDS or RDS Proxy, for use as
// PITH_PASSWORD_COMMAND=rdsiam.
//
// Host, port and user come from PGHOST, PGPORT and PGUSER, or from flags. Credentials and the region
// are found as by every AWS program; without a region the endpoint's name tells it. The exit status is
// 0 for success, 1 for a failure, and 2 for bad input.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/aws/aws-sdk-go-v2/config"

	"github.com/pithworks/pith/deploy/rdsiam"
	"github.com/pithworks/pith/pool"
)

// timeout bounds the search for credentials, which may ask a service on the machine.
const timeout = 7 * time.Second

func main() {
	os.Exit(run(context.Background(), os.Args[1:], os.Getenv, os.Stdout, os.Stderr))
}

// run is the program: args without its name. The SDK reads the process's own environment.
func run(ctx context.Context, args []string, env func(string) string, out, errOut io.Writer) int {
	flags := flag.NewFlagSet("rdsiam", flag.ContinueOnError)
	flags.SetOutput(errOut)
	host := flags.String("host", env("PGHOST"), "the endpoint of the database or the proxy ($PGHOST)")
	port := flags.String("port", env("PGPORT"), "its port, default 5432 ($PGPORT)")
	user := flags.String("user", env("PGUSER"), "the database's role ($PGUSER)")
	region := flags.String("region", "", "the region, default as configured, else as in the endpoint's name")
	switch err := flags.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		return 2
	}
	bad := func(text string) int {
		fmt.Fprintf(errOut, "rdsiam: %s (see rdsiam -help)\n", text)
		return 2
	}
	if *port == "" {
		*port = "5432"
	}
	number, err := strconv.ParseUint(*port, 10, 16)
	switch {
	case flags.NArg() > 0:
		return bad("unexpected " + strconv.Quote(flags.Arg(0)))
	case err != nil || number == 0:
		return bad("port " + strconv.Quote(*port) + " is no port")
	case *host == "":
		return bad("which host? Set PGHOST or -host")
	case *user == "":
		return bad("which user? Set PGUSER or -user")
	}
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	cfg, err := config.LoadDefaultConfig(ctx)
	if *region != "" {
		cfg.Region = *region
	}
	var token string
	if err == nil {
		token, _, err = rdsiam.Source(cfg)(ctx, pool.Endpoint{Host: *host, Port: uint16(number), User: *user})
	}
	if err == nil {
		_, err = fmt.Fprintln(out, token)
	}
	if err != nil {
		fmt.Fprintf(errOut, "rdsiam: %s\n", strings.Join(strings.Fields(err.Error()), " "))
		return 1
	}
	return 0
}
