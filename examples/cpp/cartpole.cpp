// Plays CartPole with a policy that dppo.export wrote:  cartpole policy.onnx [EPISODES] [SEED]
//
// Takes any such file of CartPole-v1: greedy or sampled, with memory or without.

#include <onnxruntime_cxx_api.h>

#include <array>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <map>
#include <random>
#include <string>
#include <vector>

// The physics of Gymnasium's CartPole-v1.
struct CartPole {
    std::array<double, 4> state;  // position, velocity, angle, angular velocity

    explicit CartPole(std::mt19937_64& random) {
        std::uniform_real_distribution<double> start(-0.05, 0.05);
        for (double& number : state) number = start(random);
    }

    // Takes an action, 0 or 1. Returns whether the episode has terminated.
    bool step(std::int64_t action) {
        auto& [x, velocity, angle, spin] = state;
        const double force = action == 1 ? 10.0 : -10.0, cosine = std::cos(angle), sine = std::sin(angle);
        const double push = (force + 0.05 * spin * spin * sine) / 1.1;
        const double turn = (9.8 * sine - cosine * push) / (0.5 * (4.0 / 3.0 - 0.1 * cosine * cosine / 1.1));
        const double acceleration = push - 0.05 * turn * cosine / 1.1;
        x += 0.02 * velocity;
        velocity += 0.02 * acceleration;
        angle += 0.02 * spin;
        spin += 0.02 * turn;
        return std::abs(x) > 2.4 || std::abs(angle) > 12.0 * 2.0 * 3.14159265358979323846 / 360.0;
    }
};

// A policy for one environment. Its inputs and outputs have names; the first axis of each is the batch, here 1.
class Policy {
public:
    explicit Policy(const char* file) : session_(environment_, file, Ort::SessionOptions{}) {
        Ort::AllocatorWithDefaultOptions allocator;
        for (std::size_t i = 0; i < session_.GetInputCount(); ++i) {
            const std::string name = session_.GetInputNameAllocated(i, allocator).get();
            const auto shape = session_.GetInputTypeInfo(i).GetTensorTypeAndShapeInfo().GetShape();
            sizes_[name] = static_cast<std::size_t>(shape.back());
        }
        reset();
    }

    // Forgets what a policy with memory has seen: an episode begins with zeros.
    void reset() {
        if (sizes_.count("state_in")) state_.assign(sizes_["state_in"], 0.0F);
    }

    std::int64_t act(const std::array<double, 4>& observed, std::mt19937_64& random) {
        std::vector<float> observation(observed.begin(), observed.end()), noise;
        std::vector<const char*> names;
        std::vector<Ort::Value> values;
        const auto give = [&](const char* name, std::vector<float>& numbers) {
            const std::array<std::int64_t, 2> shape{1, static_cast<std::int64_t>(numbers.size())};
            names.push_back(name);
            values.push_back(Ort::Value::CreateTensor<float>(memory_, numbers.data(), numbers.size(), shape.data(), 2));
        };
        give("observation", observation);
        if (!state_.empty()) give("state_in", state_);
        if (sizes_.count("noise")) {  // of a Discrete: standard Gumbel numbers
            std::extreme_value_distribution<float> gumbel(0.0F, 1.0F);
            for (std::size_t i = 0; i < sizes_["noise"]; ++i) noise.push_back(gumbel(random));
            give("noise", noise);
        }
        std::vector<const char*> outputs{"action"};
        if (!state_.empty()) outputs.push_back("state_out");
        auto found = session_.Run({}, names.data(), values.data(), values.size(), outputs.data(), outputs.size());
        if (!state_.empty()) {
            const float* after = found[1].GetTensorData<float>();
            state_.assign(after, after + state_.size());
        }
        return *found[0].GetTensorData<std::int64_t>();
    }

private:
    Ort::Env environment_{ORT_LOGGING_LEVEL_WARNING, "dppo"};
    Ort::Session session_;
    Ort::MemoryInfo memory_ = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    std::map<std::string, std::size_t> sizes_;
    std::vector<float> state_;
};

int main(int count, char** arguments) try {
    if (count < 2) {
        std::fprintf(stderr, "usage: cartpole policy.onnx [EPISODES] [SEED]\n");
        return 2;
    }
    const int episodes = count > 2 ? std::atoi(arguments[2]) : 10;
    std::mt19937_64 random(count > 3 ? std::strtoull(arguments[3], nullptr, 10) : 0);
    Policy policy(arguments[1]);
    double total = 0.0;
    for (int i = 0; i < episodes; ++i) {
        CartPole game(random);
        const auto start = game.state;
        policy.reset();
        int steps = 1;
        while (!game.step(policy.act(game.state, random)) && steps < 500) ++steps;
        std::printf("episode %d: %d steps from %.17g %.17g %.17g %.17g\n", i, steps, start[0], start[1], start[2],
                    start[3]);
        total += steps;
    }
    std::printf("mean return %.1f\n", total / episodes);
    return 0;
} catch (const std::exception& error) {
    std::fprintf(stderr, "cartpole: %s\n", error.what());
    return 1;
}
