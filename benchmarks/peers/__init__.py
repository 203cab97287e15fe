"""What other tools say of the trainings of the zoo, for a comparison of error rates on equal terms.

Six peers look at the same unchanged scripts, each with its own default thresholds:

========================  ==============================================================================================
``autotrainer``           AUTOTRAINER (ICSE 2021): its published rules, written anew (the tool needs TensorFlow 2.3)
``deepdiagnosis``         DeepDiagnosis (ICSE 2022): its published rules, written anew (the tool needs Keras 2.2)
``thedeepchecker``        TheDeepChecker (TOSEM 2022): its published rules, written anew (the tool needs TensorFlow 1)
``neuraldbg``             NeuralDBG, the package itself
``torchmortem``           torchmortem, the package itself
``torchlens``             TorchLens, the package itself: its health audit
========================  ==============================================================================================

The packages live in an environment of their own, so that nothing of theirs reaches the project's::

    python3 -m venv ../peers-venv
    ../peers-venv/bin/pip install -c constraints.txt -r benchmarks/peers/requirements.txt

Then, from Python with ``benchmarks`` on the path::

    from peers.run import run_peer
    run_peer(run, seed=0, python="../peers-venv/bin/python")

or for the whole zoo, ``python benchmarks/peers/run.py --python ../peers-venv/bin/python``. The three rule sets need
torch alone and run in the project's environment too.

What does not run with these versions (torch 2.13, Python 3.11):

* NeuralDBG 1.3.2 breaks a script whose network returns something other than tensors (``zoo/actor_critic.py`` returns a
  distribution): it puts a backward hook of the old kind on the network, which takes the output apart.
* TorchLens 2.36.1 cannot trace such a network, and its ``audit()`` fails on a network that runs a layer more than once
  (recurrent ones, shared layers); its checks are run one by one there.

The peers were made for different work: AUTOTRAINER and DeepDiagnosis for Keras classifiers, TheDeepChecker for a net that
overfits one batch, TorchLens for single passes. Each module says where its rules meet numbers other than those they were
made for. None of it is a judgement of the tools at their own work.
"""
