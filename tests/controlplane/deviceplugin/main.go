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
)

type plugin struct {
	api.UnimplementedDevicePluginServer
	devices []*api.Device
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

func kubeletSocket() string { return filepath.Join(*pluginDir, filepath.Base(api.KubeletSocket)) }

func unchanged(kubelet os.FileInfo) bool {
	now, err := os.Stat(kubeletSocket())
	return err == nil && os.SameFile(now, kubelet) && now.ModTime().Equal(kubelet.ModTime())
}

// serveAndRegister returns the identity of the kubelet's socket that it registered with.
func (p *plugin) serveAndRegister() (os.FileInfo, error) {
	kubelet, err := os.Stat(kubeletSocket())
	if err != nil {
		return nil, err
	}
	endpoint := strings.ReplaceAll(*resource, "/", "-") + ".sock"
	socket := filepath.Join(*pluginDir, endpoint)
	if err := os.RemoveAll(socket); err != nil {
		return nil, err
	}
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return nil, err
	}
	// The server of an earlier kubelet keeps its unlinked socket and serves nobody; the process ends with the test.
	server := grpc.NewServer()
	api.RegisterDevicePluginServer(server, p)
	go server.Serve(listener)

	connection, err := grpc.NewClient("unix://"+kubeletSocket(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, err
	}
	defer connection.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	_, err = api.NewRegistrationClient(connection).Register(ctx, &api.RegisterRequest{
		Version: api.Version, Endpoint: endpoint, ResourceName: *resource, Options: &api.DevicePluginOptions{},
	})
	if err == nil {
		log.Printf("registered %d devices of %s", len(p.devices), *resource)
	}
	return kubelet, err
}

func (p *plugin) GetDevicePluginOptions(context.Context, *api.Empty) (*api.DevicePluginOptions, error) {
	return &api.DevicePluginOptions{}, nil
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
