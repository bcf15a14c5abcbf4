// Command deviceplugin plays NVIDIA's device plugin with time-slicing for a real kubelet: it advertises every GPU as
// several replicas, "GPU-<uuid>::<n>", and hands the container the GPU's UUID in NVIDIA_VISIBLE_DEVICES, as the envvar
// device-list strategy does. There is no device behind it.
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	api "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
)

var (
	resource  = flag.String("resource", "nvidia.com/gpu", "extended resource to advertise")
	gpus      = flag.Int("gpus", 1, "physical GPUs to pretend")
	replicas  = flag.Int("replicas", 4, "replicas of each GPU; 1 advertises whole GPUs without a replica suffix")
	pluginDir = flag.String("plugin-dir", api.DevicePluginPath, "the kubelet's device-plugins folder")
	register  = flag.String("kubelet-socket", "", "socket to register at; kubelet.sock in the folder if empty")
	preferred = flag.Bool("preferred-allocation", false, "prefer the GPU with the fewest allocated replicas")
)

type plugin struct {
	api.UnimplementedDevicePluginServer
	devices []*api.Device
	server  *grpc.Server
}

func main() {
	flag.Parse()
	p := &plugin{}
	for gpu := range *gpus {
		// A fixed UUID, so that tests can name the device they expect.
		uuid := fmt.Sprintf("GPU-%08x-0000-4000-8000-%012x", gpu, gpu)
		for n := range *replicas {
			id := uuid
			if *replicas > 1 {
				id = fmt.Sprintf("%s::%d", uuid, n)
			}
			p.devices = append(p.devices, &api.Device{ID: id, Health: api.Healthy})
		}
	}
	// A kubelet that starts empties the folder and makes its socket anew: everything below is then due again, for as
	// long as the process lives. Polling is enough; what waits for it is a person or a test.
	for {
		kubelet, err := p.serveAndRegister()
		if err != nil {
			log.Printf("not registered, trying again: %v", err)
		}
		for err == nil && unchanged(kubelet) {
			time.Sleep(200 * time.Millisecond)
		}
		time.Sleep(200 * time.Millisecond)
	}
}

func kubeletSocket() string {
	if *register != "" {
		return *register
	}
	return filepath.Join(*pluginDir, filepath.Base(api.KubeletSocket))
}

// unchanged looks at the file itself, not at where a link leads: NVIDIA's plugin restarts when the file is created.
func unchanged(kubelet os.FileInfo) bool {
	now, err := os.Lstat(kubeletSocket())
	return err == nil && os.SameFile(now, kubelet) && now.ModTime().Equal(kubelet.ModTime())
}

// serveAndRegister returns the identity of the kubelet's socket that it registered with.
func (p *plugin) serveAndRegister() (os.FileInfo, error) {
	kubelet, err := os.Lstat(kubeletSocket())
	if err != nil {
		return nil, err
	}
	_, name, _ := strings.Cut(*resource, "/")
	endpoint := "nvidia-" + name + ".sock"
	socket := filepath.Join(*pluginDir, endpoint)
	if p.server != nil {
		p.server.Stop() // removes its socket
	}
	if err := os.RemoveAll(socket); err != nil {
		return nil, err
	}
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return nil, err
	}
	p.server = grpc.NewServer()
	api.RegisterDevicePluginServer(p.server, p)
	go p.server.Serve(listener)

	// With a dialer of its own, as NVIDIA's plugin has it, gRPC sends the escaped path as :authority.
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	dial := func(ctx context.Context, path string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", path)
	}
	connection, err := grpc.DialContext(ctx, kubeletSocket(), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithBlock(), grpc.WithContextDialer(dial))
	if err != nil {
		return nil, err
	}
	defer connection.Close()
	_, err = api.NewRegistrationClient(connection).Register(ctx, &api.RegisterRequest{
		Version: api.Version, Endpoint: endpoint, ResourceName: *resource, Options: options(),
	})
	if err == nil {
		log.Printf("registered %d devices of %s", len(p.devices), *resource)
	}
	return kubelet, err
}

func options() *api.DevicePluginOptions {
	return &api.DevicePluginOptions{GetPreferredAllocationAvailable: *preferred}
}

func (p *plugin) GetDevicePluginOptions(context.Context, *api.Empty) (*api.DevicePluginOptions, error) {
	return options(), nil
}

// GetPreferredAllocation takes replica by replica from the GPU of which most are available, as NVIDIA's plugin does by
// default.
func (p *plugin) GetPreferredAllocation(_ context.Context, request *api.PreferredAllocationRequest) (*api.PreferredAllocationResponse, error) {
	response := &api.PreferredAllocationResponse{}
	for _, container := range request.ContainerRequests {
		ids := slices.Clone(container.MustIncludeDeviceIDs)
		free := map[string][]string{}
		for _, id := range container.AvailableDeviceIDs {
			if uuid, _, _ := strings.Cut(id, "::"); !slices.Contains(ids, id) {
				free[uuid] = append(free[uuid], id)
			}
		}
		for len(ids) < int(container.AllocationSize) {
			most := ""
			for uuid, of := range free { // in random order, which breaks ties
				if len(of) > 0 && (most == "" || len(of) > len(free[most])) {
					most = uuid
				}
			}
			if most == "" {
				break
			}
			ids, free[most] = append(ids, free[most][0]), free[most][1:]
		}
		response.ContainerResponses = append(response.ContainerResponses, &api.ContainerPreferredAllocationResponse{DeviceIDs: ids})
	}
	return response, nil
}

// ListAndWatch sends the list once: nothing here becomes unhealthy.
func (p *plugin) ListAndWatch(_ *api.Empty, stream api.DevicePlugin_ListAndWatchServer) error {
	if err := stream.Send(&api.ListAndWatchResponse{Devices: p.devices}); err != nil {
		return err
	}
	<-stream.Context().Done()
	return nil
}

func (p *plugin) Allocate(_ context.Context, request *api.AllocateRequest) (*api.AllocateResponse, error) {
	response := &api.AllocateResponse{}
	for _, container := range request.ContainerRequests {
		var uuids []string
		for _, id := range container.DevicesIds {
			uuid, _, _ := strings.Cut(id, "::") // two replicas may be one GPU
			if !slices.Contains(uuids, uuid) {
				uuids = append(uuids, uuid)
			}
		}
		response.ContainerResponses = append(response.ContainerResponses, &api.ContainerAllocateResponse{
			Envs: map[string]string{"NVIDIA_VISIBLE_DEVICES": strings.Join(uuids, ",")},
		})
	}
	return response, nil
}
